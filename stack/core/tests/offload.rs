//! What is left to a NIC that cuts segments and fills in checksums: one is modelled here, whose work
//! the receiver verifies.

mod common;

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use common::{
    CLIENT, SERVER, SERVER_V6, arena, config_v6, pattern, server_at, server_v6_at, small_limits,
};
use millstream_buf::IoBuf;
use millstream_core::{Shard, TcpStream};
use millstream_disk::MemDisk;
use millstream_link::mem::{MemConfig, MemLink, pair};
use millstream_link::{Capabilities, Link, LinkStats, RxBurst, TxError, TxFrame};
use millstream_timer::VirtualClock;
use millstream_wire::checksum::{Sum, checksum};

/// A NIC at the end of an in-memory link.
struct Nic {
    wire: MemLink,
    capabilities: Capabilities,
    /// Segments that it has cut others into.
    cut: Rc<Cell<usize>>,
}

impl Nic {
    fn new(wire: MemLink) -> Self {
        let capabilities = Capabilities {
            tx_ipv4_checksum: true,
            tx_tcp_checksum: true,
            tso_bytes_max: 65_407,
            ..wire.capabilities().clone()
        };
        Self { wire, capabilities, cut: Rc::default() }
    }

    /// Sends one segment of a frame, with its checksums.
    fn emit(&mut self, headers: &[u8], payload: &[u8], frame: &TxFrame<'_>, at: usize, last: bool) {
        let offload = &frame.offload;
        let ip = usize::from(offload.l2_len);
        let tcp = ip + usize::from(offload.l3_len);
        let l4_len = usize::from(offload.l4_len) + payload.len();
        let mut headers = headers.to_vec();
        if headers[ip] >> 4 == 4 {
            let len = (tcp - ip + l4_len) as u16;
            headers[ip + 2..ip + 4].copy_from_slice(&len.to_be_bytes());
            assert_eq!(headers[ip + 10..ip + 12], [0, 0], "left to the NIC");
            let sum = checksum(&headers[ip..tcp]);
            headers[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
        } else {
            headers[ip + 4..ip + 6].copy_from_slice(&(l4_len as u16).to_be_bytes());
        }
        let seq = u32::from_be_bytes(headers[tcp + 4..tcp + 8].try_into().unwrap());
        headers[tcp + 4..tcp + 8].copy_from_slice(&seq.wrapping_add(at as u32).to_be_bytes());
        if !last {
            // FIN and PSH.
            headers[tcp + 13] &= !0x09;
        }
        // The field holds the sum over the pseudo-header, of which a segment that is to be cut has no
        // length.
        let mut sum = Sum::new();
        if offload.tso_mss != 0 {
            sum.add_u32(l4_len as u32);
        }
        sum.add_bytes(&headers[tcp..]);
        sum.add_bytes(payload);
        headers[tcp + 16..tcp + 18].copy_from_slice(&sum.finish().to_be_bytes());
        let payload = [IoBuf::from(payload)];
        let frame = TxFrame { header: &headers, payload: &payload, offload: Default::default() };
        self.wire.tx(&frame).unwrap();
    }
}

impl Link for Nic {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn rx_burst(&mut self, frames: &mut RxBurst) {
        self.wire.rx_burst(frames);
    }
    fn tx_room(&mut self) -> usize {
        // A frame of the largest kind.
        self.wire.tx_room() / 64
    }
    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        if !frame.offload.tcp_checksum {
            return self.wire.tx(frame);
        }
        let bytes: Vec<u8> = frame.payload.iter().flat_map(|slice| slice.to_vec()).collect();
        let size = match frame.offload.tso_mss {
            0 => bytes.len().max(1),
            mss => usize::from(mss),
        };
        assert!(bytes.len() <= self.capabilities.tso_bytes_max as usize);
        assert!(bytes.is_empty() || frame.header.len() - 14 + size <= 1500, "segments fit the MTU");
        if bytes.is_empty() {
            self.emit(frame.header, &[], frame, 0, true);
        }
        for (index, piece) in bytes.chunks(size).enumerate() {
            let last = (index + 1) * size >= bytes.len();
            self.emit(frame.header, piece, frame, index * size, last);
        }
        if bytes.len() > size {
            self.cut.set(self.cut.get() + bytes.len().div_ceil(size));
        }
        Ok(())
    }
    fn flush(&mut self) {}
    fn stats(&self) -> LinkStats {
        self.wire.stats()
    }
}

async fn send(stream: TcpStream, data: Vec<u8>) {
    // Slices that end nowhere near the segments' ends.
    for slice in data.chunks(7_777) {
        stream.send_buf(IoBuf::from(slice)).await.unwrap();
    }
    stream.shutdown();
}

fn transfer(server: SocketAddr) {
    let (a, b) = pair(MemConfig { slots: 512, ..MemConfig::default() }).unwrap();
    let nic = Nic::new(b);
    let cut = Rc::clone(&nic.cut);
    let clock = VirtualClock::new();
    let disk = || Box::new(MemDisk::copying(4).unwrap());
    let config = |address: Ipv4Addr| config_v6(address, small_limits());
    let mut near = Shard::new(config(CLIENT), a, clock.clone(), arena(512, 64), disk());
    let mut far = Shard::new(config(SERVER), nic, clock.clone(), arena(512, 64), disk());

    let data = pattern(500_000, 5);
    let listener = far.stack().listen(server, 4).unwrap();
    let sent = data.clone();
    let serve = async move { send(listener.accept().await.0, sent).await };
    drop(far.stack().spawn(serve).unwrap());
    let stack = near.stack().clone();
    let fetch = async move {
        let stream = stack.connect(server).await.unwrap();
        let (mut got, mut slices) = (Vec::new(), Vec::with_capacity(16));
        while stream.read_bufs(&mut slices).await.unwrap() != 0 {
            slices.drain(..).for_each(|slice| got.extend_from_slice(&slice));
        }
        got
    };
    let handle = near.stack().spawn(fetch).unwrap();
    for _ in 0..1_000_000 {
        if let Some(got) = handle.take() {
            assert!(got == data, "{} bytes", got.len());
            assert!(cut.get() > 100, "only {} segments of runs", cut.get());
            let metrics = near.stack().rx_metrics();
            assert_eq!((metrics.drop_l4_checksum, metrics.drop_ip_checksum), (0, 0));
            assert_eq!(metrics.unaccounted(), 0);
            assert_eq!(far.stack().tcp_stats().retransmits, 0);
            return;
        }
        if near.turn().work + far.turn().work == 0 {
            clock.advance_to(near.next_deadline().min(far.next_deadline()));
        }
    }
    panic!("no end");
}

#[test]
fn a_nic_cuts_runs_over_ipv4() {
    transfer(server_at(80).into());
}

#[test]
fn a_nic_cuts_runs_over_ipv6() {
    assert_eq!(server_v6_at(80).ip(), &SERVER_V6);
    transfer(server_v6_at(80).into());
}
