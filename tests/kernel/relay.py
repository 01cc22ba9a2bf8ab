#!/usr/bin/env python3
"""Relays Ethernet frames between two interfaces and impairs them.

usage: relay.py INTERFACE INTERFACE [--seed N] [--loss P] [--reorder P] [--duplicate P] [--corrupt P]

The probabilities are per frame. A reordered frame is held back for 2 to 10 ms while others pass; a
corrupted one has one bit flipped behind its Ethernet header. Says `ready` when it relays; on SIGTERM
it prints what it did, a count per kind, and ends. Needs CAP_NET_RAW. Both interfaces must have their
offloads switched off, so that no frame is longer than a wire's.
"""

import argparse
import heapq
import random
import selectors
import signal
import socket
import time

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_IGNORE_OUTGOING = 23
SO_RCVBUFFORCE = 33
BURST = 64


def open_interface(name):
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    packets.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    packets.setblocking(False)
    packets.bind((name, ETH_P_ALL))
    return packets


def corrupted(frame, chance):
    frame = bytearray(frame)
    bit = chance.randrange(14 * 8, len(frame) * 8)
    frame[bit // 8] ^= 1 << bit % 8
    return bytes(frame)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("interface", nargs=2)
    parser.add_argument("--seed", type=int, default=1)
    for impairment in ("loss", "reorder", "duplicate", "corrupt"):
        parser.add_argument("--" + impairment, type=float, default=0.0)
    args = parser.parse_args()

    chance = random.Random(args.seed)
    counts = {"relayed": 0, "lost": 0, "reordered": 0, "duplicated": 0, "corrupted": 0, "refused": 0}
    ends = [open_interface(name) for name in args.interface]
    ready = selectors.DefaultSelector()
    for this, other in ((0, 1), (1, 0)):
        ready.register(ends[this], selectors.EVENT_READ, ends[other])
    held = []  # (when it is due, a number that keeps the order of equals, frame, where it goes)
    running = True

    def stop(*_):
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    # A pending signal ends the select below: the interpreter writes to this socket.
    wake_read, wake_write = socket.socketpair()
    wake_write.setblocking(False)
    signal.set_wakeup_fd(wake_write.fileno())
    ready.register(wake_read, selectors.EVENT_READ, None)

    def pass_on(frame, to):
        try:
            to.send(frame)
            counts["relayed"] += 1
        except OSError:  # its queue is full, or the interface has gone
            counts["refused"] += 1

    print("ready", flush=True)
    while running:
        timeout = max(0.0, held[0][0] - time.monotonic()) if held else None
        for key, _ in ready.select(timeout):
            if key.data is None:
                continue
            for _ in range(BURST):
                try:
                    frame = key.fileobj.recv(65536)
                except OSError:  # drained, or the interface has gone
                    break
                if chance.random() < args.loss:
                    counts["lost"] += 1
                    continue
                if chance.random() < args.corrupt:
                    counts["corrupted"] += 1
                    frame = corrupted(frame, chance)
                if chance.random() < args.duplicate:
                    counts["duplicated"] += 1
                    pass_on(frame, key.data)
                if chance.random() < args.reorder:
                    counts["reordered"] += 1
                    due = time.monotonic() + chance.uniform(0.002, 0.010)
                    heapq.heappush(held, (due, counts["reordered"], frame, key.data))
                else:
                    pass_on(frame, key.data)
        while held and held[0][0] <= time.monotonic():
            _, _, frame, to = heapq.heappop(held)
            pass_on(frame, to)
    print(" ".join(f"{name} {count}" for name, count in counts.items()), flush=True)


if __name__ == "__main__":
    main()
