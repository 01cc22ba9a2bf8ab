#!/usr/bin/env python3
"""Opens packet sockets on two interfaces and becomes a program that relays between them.

usage: relay.py INTERFACE INTERFACE PROGRAM [ARGUMENT]...

PROGRAM gets the sockets as its standard input and output. Binding a packet socket takes what safe Rust
does not have. Needs CAP_NET_RAW. Both interfaces must have their offloads switched off, so that no frame
is longer than a wire's.
"""

import os
import socket
import sys

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_IGNORE_OUTGOING = 23
SO_RCVBUFFORCE = 33
SO_SNDBUFFORCE = 32


def open_interface(name):
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    packets.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    packets.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 16 << 20)
    packets.bind((name, ETH_P_ALL))
    return packets


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    one, other = open_interface(sys.argv[1]), open_interface(sys.argv[2])
    os.dup2(one.fileno(), 0, inheritable=True)
    os.dup2(other.fileno(), 1, inheritable=True)
    os.execv(sys.argv[3], sys.argv[3:])


if __name__ == "__main__":
    main()
