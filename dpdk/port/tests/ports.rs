//! Ports in one process: rings, the null device, shared memory; no privilege, no huge pages.

use std::sync::Barrier;

use dpdk_port::{
    Device, Eal, EalConfig, EalError, MemifRole, PcapSink, Port, PortConfig, PortQueue,
};
use millstream_buf::{Arena, ArenaConfig, HugePages, IoBuf, SizeClass};
use millstream_link::{Link, RxBurst, TxError, TxFrame};

const HEADER: [u8; 54] = [0xab; 54];

fn eal() -> &'static Eal {
    let config = EalConfig { huge_pages: HugePages::Never, memory_mb: 192, ..EalConfig::default() };
    Eal::init(&config).unwrap()
}

fn small(device: Device) -> PortConfig {
    PortConfig { mbufs: 1024, rx_descriptors: 128, tx_descriptors: 128, ..PortConfig::new(device) }
}

fn pair_with(config: &PortConfig) -> (PortQueue, PortQueue) {
    let (mut a, mut b) = Port::ring_pair(eal(), config).unwrap();
    let bind = |port: &mut Port| port.take_queue(0).unwrap().bind().unwrap();
    (bind(&mut a), bind(&mut b))
}

fn pair() -> (PortQueue, PortQueue) {
    pair_with(&small(Device::Ring))
}

fn arena(frames: usize, blocks: usize) -> Arena {
    Arena::new(&ArenaConfig { frames, blocks, huge_pages: HugePages::Never }).unwrap()
}

fn filled(arena: &Arena, class: SizeClass, len: usize, seed: u8) -> IoBuf {
    let mut buf = arena.alloc(class).unwrap();
    for (i, byte) in buf[..len].iter_mut().enumerate() {
        *byte = (i as u8).wrapping_mul(31).wrapping_add(seed);
    }
    buf.freeze(0..len)
}

fn frame<'a>(payload: &'a [IoBuf]) -> TxFrame<'a> {
    TxFrame { header: &HEADER, payload, offload: Default::default() }
}

fn bytes_of(payload: &[IoBuf]) -> Vec<u8> {
    let mut bytes = HEADER.to_vec();
    payload.iter().for_each(|slice| bytes.extend_from_slice(slice));
    bytes
}

#[test]
fn a_second_start_gives_the_same_or_says_why_not() {
    let first = eal();
    assert!(std::ptr::eq(first, eal()));
    let other = EalConfig { memory_mb: 77, ..EalConfig::default() };
    assert_eq!(Eal::init(&other).unwrap_err(), EalError::AlreadyRunning);
}

#[test]
fn frames_cross_a_ring_unchanged_and_everything_comes_home() {
    let (mut a, mut b) = pair();
    let arena = arena(16, 4);
    let tx_free = a.tx_buffers_free();
    let rx_free = b.rx_buffers_free();
    let block = filled(&arena, SizeClass::Block, 16_000, 1);
    let other = filled(&arena, SizeClass::Frame, 700, 2);
    // No payload; inline; one slice; slices of odd lengths, twice of the same buffer; heap.
    let frames: [Vec<IoBuf>; 5] = [
        vec![],
        vec![block.slice(3..80)],
        vec![block.slice(0..1446)],
        vec![block.slice(1..502), other.slice(0..333), block.slice(502..700)],
        vec![IoBuf::from(vec![9u8; 600])],
    ];
    for payload in &frames {
        a.tx(&frame(payload)).unwrap();
    }
    a.flush();
    let mut got = RxBurst::new();
    b.rx_burst(&mut got);
    let want: Vec<_> = frames.iter().map(|payload| bytes_of(payload)).collect();
    assert_eq!(got.iter().map(|frame| frame.buf.to_vec()).collect::<Vec<_>>(), want);
    let (sent, received) = (a.stats(), b.stats());
    assert_eq!(sent.tx_copied_bytes, 77, "only the small payload was copied");
    assert_eq!((sent.tx_frames, sent.tx_bytes), (received.rx_frames, received.rx_bytes));
    assert!(received.rx_copied_bytes > 0, "chains were joined");

    drop((got, frames, block, other));
    assert_eq!((arena.free(SizeClass::Frame), arena.free(SizeClass::Block)), (16, 4));
    assert_eq!(b.rx_buffers_free(), rx_free);
    assert_eq!(a.tx_buffers_free(), tx_free);
}

#[test]
fn what_is_being_sent_does_not_change_under_a_later_write() {
    let (mut a, mut b) = pair();
    let arena = arena(4, 0);
    let mut mine = filled(&arena, SizeClass::Frame, 1000, 5);
    let before = mine.to_vec();
    a.tx(&frame(std::slice::from_ref(&mine))).unwrap();
    a.flush();
    let (bytes, copied) = mine.make_mut(&arena).unwrap();
    bytes.fill(0);
    assert_eq!(copied, 1000, "the ring still holds the old bytes");
    let mut got = RxBurst::new();
    b.rx_burst(&mut got);
    assert_eq!(&got[0].buf[HEADER.len()..], before);
}

#[test]
fn a_hundred_thousand_frames_leak_nothing() {
    let (mut a, mut b) = pair();
    let arena = arena(64, 8);
    let (tx_free, rx_free) = (a.tx_buffers_free(), b.rx_buffers_free());
    let block = filled(&arena, SizeClass::Block, 16_000, 7);
    let mut got = RxBurst::new();
    let (mut sent, mut received) = (0u64, 0u64);
    while received < 100_000 {
        for _ in 0..a.tx_room() {
            let at = (sent as usize * 37) % 14_000;
            let payload = match sent % 3 {
                0 => vec![block.slice(at..at + 1400)],
                1 => vec![block.slice(at..at + 20)],
                _ => {
                    vec![filled(&arena, SizeClass::Frame, 500, sent as u8), block.slice(at..at + 9)]
                }
            };
            a.tx(&frame(&payload)).unwrap();
            sent += 1;
        }
        a.flush();
        loop {
            b.rx_burst(&mut got);
            if got.is_empty() {
                break;
            }
            received += got.len() as u64;
            got.clear();
        }
    }
    assert_eq!((sent, a.stats().tx_frames, b.stats().rx_frames), (received, sent, sent));
    drop(block);
    assert_eq!((arena.free(SizeClass::Frame), arena.free(SizeClass::Block)), (64, 8));
    assert_eq!((a.tx_buffers_free(), b.rx_buffers_free()), (tx_free, rx_free));
}

#[test]
fn a_full_ring_is_an_answer_and_room_is_a_promise() {
    let (mut a, mut b) = pair();
    let arena = arena(64, 1);
    let block = filled(&arena, SizeClass::Block, 16_000, 3);
    // The costliest frame: as many slices as are allowed.
    let slices = a.capabilities().tx_slices_max;
    let payload: Vec<_> = (0..slices).map(|i| block.slice(i * 50..i * 50 + 50)).collect();
    let mut sent = 0;
    loop {
        let room = a.tx_room();
        if room == 0 {
            break;
        }
        for _ in 0..room {
            a.tx(&frame(&payload)).expect("there was room");
            sent += 1;
        }
    }
    assert!(sent >= 64, "{sent}");
    while a.tx(&frame(&payload)).is_ok() {
        sent += 1;
    }
    assert_eq!(a.tx(&frame(&payload)), Err(TxError::Full));
    // Nothing that was taken is lost.
    let mut received = 0;
    let mut got = RxBurst::new();
    while received < sent {
        a.flush();
        b.rx_burst(&mut got);
        assert!(!got.is_empty(), "{received} of {sent}");
        received += got.len();
        got.clear();
    }
    assert!(a.tx_room() > 0);
    assert_eq!(a.stats().tx_errors, 0);
}

#[test]
fn too_long_is_refused_whole() {
    let (mut a, _b) = pair();
    let long = [IoBuf::from(vec![0u8; 1500])];
    assert_eq!(a.tx(&frame(&long)), Err(TxError::TooLong));
    let header = [0u8; 129];
    let headers = TxFrame { header: &header, payload: &[], offload: Default::default() };
    assert_eq!(a.tx(&headers), Err(TxError::TooLong));
    assert_eq!(a.stats().tx_frames, 0);
}

#[test]
fn more_slices_than_a_frame_may_have_are_copied() {
    let (mut a, mut b) = pair();
    let arena = arena(1, 1);
    let block = filled(&arena, SizeClass::Block, 4000, 3);
    let count = a.capabilities().tx_slices_max + 5;
    let payload: Vec<_> = (0..count).map(|i| block.slice(i * 60..i * 60 + 60)).collect();
    a.tx(&frame(&payload)).unwrap();
    a.flush();
    assert_eq!(a.stats().tx_copied_bytes, 60 * count as u64);
    let mut got = RxBurst::new();
    b.rx_burst(&mut got);
    assert_eq!(&*got[0].buf, &bytes_of(&payload)[..]);
}

#[test]
fn a_received_frame_can_be_sent_on() {
    let (mut a, mut b) = pair();
    let rx_free = a.rx_buffers_free();
    let tx_free = (a.tx_buffers_free(), b.tx_buffers_free());
    let arena = arena(1, 1);
    let block = filled(&arena, SizeClass::Block, 2000, 3);
    // Once as one mbuf, once as a chain that the receiver joins.
    for len in [100, 1400] {
        let payload = [block.slice(0..len)];
        a.tx(&frame(&payload)).unwrap();
        a.flush();
        let mut got = RxBurst::new();
        b.rx_burst(&mut got);
        let echo = [got.pop().unwrap().buf];
        drop(got);
        b.tx(&TxFrame { header: &HEADER[..14], payload: &echo, offload: Default::default() })
            .unwrap();
        drop(echo);
        b.flush();
        let mut back = RxBurst::new();
        a.rx_burst(&mut back);
        assert_eq!(&back[0].buf[14..], bytes_of(&payload));
    }
    a.flush();
    b.flush();
    assert_eq!(a.rx_buffers_free(), rx_free);
    assert_eq!((a.tx_buffers_free(), b.tx_buffers_free()), tx_free);
}

/// The sender keeps sending slices of the same few buffers while another thread frees them.
#[test]
fn buffers_freed_on_another_thread_come_home() {
    let (mut a, mut b) = Port::ring_pair(eal(), &small(Device::Ring)).unwrap();
    let (a, b) = (a.take_queue(0).unwrap(), b.take_queue(0).unwrap());
    let done = Barrier::new(2);
    const FRAMES: u64 = 50_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut a = a.bind().unwrap();
            let tx_free = a.tx_buffers_free();
            let arena = arena(0, 2);
            let blocks = [0, 1].map(|seed| filled(&arena, SizeClass::Block, 16_000, seed));
            let mut sent = 0;
            while sent < FRAMES {
                let at = (sent as usize * 97) % 14_000;
                let payload = [blocks[sent as usize % 2].slice(at..at + 1000)];
                match a.tx(&frame(&payload)) {
                    Ok(()) => sent += 1,
                    Err(_) => std::thread::yield_now(),
                }
            }
            while a.stats().tx_frames < FRAMES {
                a.flush();
                std::thread::yield_now();
            }
            done.wait();
            a.flush();
            assert_eq!(a.lost_references(), 0);
            drop(blocks);
            assert_eq!(arena.free(SizeClass::Block), 2);
            assert_eq!(a.tx_buffers_free(), tx_free);
        });
        scope.spawn(|| {
            let mut b = b.bind().unwrap();
            // Counted and not asserted here: the other thread waits for this one.
            let (mut received, mut wrong) = (0, 0);
            let mut got = RxBurst::new();
            while received < FRAMES {
                b.rx_burst(&mut got);
                for frame in got.drain(..) {
                    let (header, payload) = frame.buf.split_at(HEADER.len());
                    let right = header == HEADER
                        && payload.len() == 1000
                        && payload.windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) == 31);
                    wrong += u64::from(!right);
                    received += 1;
                }
                std::thread::yield_now();
            }
            done.wait();
            assert_eq!(wrong, 0);
        });
    });
}

#[test]
fn null_swallows_and_is_silent_if_told_so() {
    let open = |rx| {
        let config = small(Device::Null { frame_bytes: 64, rx });
        Port::open(eal(), &config).unwrap().take_queue(0).unwrap().bind().unwrap()
    };
    let arena = arena(1, 1);
    let mut quiet = open(false);
    let payload = [filled(&arena, SizeClass::Block, 1400, 0)];
    for _ in 0..1000 {
        quiet.tx(&frame(&payload)).unwrap();
    }
    quiet.flush();
    let mut got = RxBurst::new();
    quiet.rx_burst(&mut got);
    assert!(got.is_empty());
    let stats = quiet.stats();
    assert_eq!((stats.tx_frames, stats.tx_copied_bytes, stats.tx_errors), (1000, 0, 0));
    assert!(!quiet.capabilities().copies_payload);
    drop(payload);
    assert_eq!(arena.free(SizeClass::Block), 1);

    let mut loud = open(true);
    loud.rx_burst(&mut got);
    assert!(got.is_full());
    assert!(got.iter().all(|frame| frame.buf.len() == 64));
}

#[test]
fn ports_can_be_opened_and_closed_again_and_again() {
    for _ in 0..50 {
        let (mut a, mut b) = pair();
        a.tx(&frame(&[])).unwrap();
        a.flush();
        let mut got = RxBurst::new();
        b.rx_burst(&mut got);
        assert_eq!(got.len(), 1);
        drop((a, b));
        assert_eq!(&*got[0].buf, &HEADER, "a frame outlives its port");
    }
}

#[test]
fn several_queues_are_separate() {
    let config = PortConfig { queues: 2, ..small(Device::Ring) };
    let (mut a, mut b) = Port::ring_pair(eal(), &config).unwrap();
    let mut bind = |index| {
        let take = |port: &mut Port| port.take_queue(index).unwrap().bind().unwrap();
        (take(&mut a), take(&mut b))
    };
    let ((mut a0, mut b0), (mut a1, mut b1)) = (bind(0), bind(1));
    a1.tx(&TxFrame { header: b"one", payload: &[], offload: Default::default() }).unwrap();
    a0.tx(&TxFrame { header: b"zero", payload: &[], offload: Default::default() }).unwrap();
    a0.flush();
    a1.flush();
    let mut got = RxBurst::new();
    b0.rx_burst(&mut got);
    b1.rx_burst(&mut got);
    assert_eq!(
        got.iter().map(|frame| frame.buf.to_vec()).collect::<Vec<_>>(),
        [&b"zero"[..], b"one"]
    );
    assert!(a0.is_up());
    assert!(a.take_queue(0).is_none());
    let too_many =
        PortConfig { queues: 2000, ..small(Device::Null { frame_bytes: 64, rx: false }) };
    let error = Port::open(eal(), &too_many).unwrap_err().to_string();
    assert!(error.starts_with("net_null has at most"), "{error}");
}

#[test]
fn a_ring_alone_is_a_loop() {
    let config = small(Device::Ring);
    let mut queue = Port::open(eal(), &config).unwrap().take_queue(0).unwrap().bind().unwrap();
    queue.tx(&frame(&[])).unwrap();
    queue.flush();
    let mut got = RxBurst::new();
    queue.rx_burst(&mut got);
    assert_eq!(&*got[0].buf, &HEADER);
}

#[test]
fn long_packets_cross_where_the_driver_allows() {
    let config = PortConfig { mtu: Some(9000), mbufs: 640, ..small(Device::Ring) };
    let (mut a, mut b) = pair_with(&config);
    let arena = arena(0, 1);
    let payload = [filled(&arena, SizeClass::Block, 8900, 1)];
    a.tx(&frame(&payload)).unwrap();
    a.flush();
    let mut got = RxBurst::new();
    b.rx_burst(&mut got);
    assert_eq!(&*got[0].buf, &bytes_of(&payload)[..]);
    assert_eq!(a.capabilities().mtu, 9000);
}

#[test]
fn too_many_buffers_is_a_sentence() {
    let config = PortConfig { mbufs: 1_000_000, ..small(Device::Ring) };
    let error = Port::open(eal(), &config).unwrap_err().to_string();
    assert!(error.contains("raise `dpdk.memory_mb`, now 192"), "{error}");
}

#[test]
fn shared_memory_carries_frames() {
    let dir = std::env::temp_dir().join(format!("millstream-memif-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let socket = dir.join("s");
    let end = |role| {
        let device = Device::Memif { role, socket: socket.clone(), id: 0 };
        Port::open(eal(), &small(device)).unwrap().take_queue(0).unwrap().bind().unwrap()
    };
    let mut server = end(MemifRole::Server);
    let mut client = end(MemifRole::Client);
    let arena = arena(1, 1);
    let payload = [filled(&arena, SizeClass::Block, 1400, 4)];
    let mut got = RxBurst::new();
    // The two shake hands in a thread of DPDK's; the frame waits in the batch until they have.
    client.tx(&frame(&payload)).unwrap();
    assert_eq!(client.stats().tx_frames, 0);
    for _ in 0..5000 {
        client.flush();
        server.rx_burst(&mut got);
        if !got.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(got[0].buf.to_vec(), bytes_of(&payload));
    assert!(client.capabilities().copies_payload);
    drop((server, client));
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Each frame is sent on by the thread that received it, and freed by the one that sent it first.
#[test]
fn an_echo_on_another_thread_gives_everything_back() {
    let (mut a, mut b) = Port::ring_pair(eal(), &small(Device::Ring)).unwrap();
    let (a, b) = (a.take_queue(0).unwrap(), b.take_queue(0).unwrap());
    let done = Barrier::new(2);
    const FRAMES: u64 = 20_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut a = a.bind().unwrap();
            let tx_free = a.tx_buffers_free();
            let arena = arena(0, 1);
            let block = filled(&arena, SizeClass::Block, 16_000, 0);
            let mut got = RxBurst::new();
            // Counted and not asserted here: the other thread waits for this one.
            let (mut sent, mut back, mut wrong) = (0, 0, 0);
            while back < FRAMES {
                let at = (sent as usize * 11) % 14_000;
                // Every other frame crosses as one mbuf, the rest as chains.
                let payload = [block.slice(at..at + if sent % 2 == 0 { 100 } else { 900 })];
                if sent < FRAMES && sent - back < 64 && a.tx(&frame(&payload)).is_ok() {
                    sent += 1;
                }
                a.flush();
                a.rx_burst(&mut got);
                for frame in got.drain(..) {
                    let at = (back as usize * 11) % 14_000;
                    let len = if back % 2 == 0 { 100 } else { 900 };
                    wrong += u64::from(frame.buf[14 + HEADER.len()..] != block[at..at + len]);
                    back += 1;
                }
                std::thread::yield_now();
            }
            drop(block);
            done.wait();
            a.flush();
            done.wait();
            assert_eq!(wrong, 0);
            assert_eq!(arena.free(SizeClass::Block), 1);
            assert_eq!(a.tx_buffers_free(), tx_free);
        });
        scope.spawn(|| {
            let mut b = b.bind().unwrap();
            let (rx_free, tx_free) = (b.rx_buffers_free(), b.tx_buffers_free());
            let mut got = RxBurst::new();
            let mut echoed = 0;
            while echoed < FRAMES {
                b.rx_burst(&mut got);
                for frame in got.drain(..) {
                    let payload = [frame.buf];
                    let echo = TxFrame {
                        header: &HEADER[..14],
                        payload: &payload,
                        offload: Default::default(),
                    };
                    // At most 64 are under way, which fit the queue.
                    let _ = b.tx(&echo);
                    echoed += 1;
                }
                b.flush();
                std::thread::yield_now();
            }
            done.wait();
            b.flush();
            done.wait();
            assert_eq!(b.lost_references(), 0);
            assert_eq!((b.rx_buffers_free(), b.tx_buffers_free()), (rx_free, tx_free));
        });
    });
}

#[test]
fn capture_files_are_read_and_written() {
    let dir = std::env::temp_dir().join(format!("millstream-pcap-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (from, to) = (dir.join("in.pcap"), dir.join("out.pcap"));
    // The classic format: magic, version 2.4, zone, accuracy, longest frame, Ethernet.
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    let captured = [[7_u8; 60], [9; 60]];
    for frame in &captured {
        for word in [1_u32, 0, 60, 60] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(frame);
    }
    std::fs::write(&from, file).unwrap();
    let device = Device::Pcap { rx_file: from, tx: PcapSink::File(to.clone()) };
    let mut queue =
        Port::open(eal(), &small(device)).unwrap().take_queue(0).unwrap().bind().unwrap();
    let mut got = RxBurst::new();
    queue.rx_burst(&mut got);
    assert_eq!(got.iter().map(|frame| &*frame.buf).collect::<Vec<_>>(), captured);
    let payload = [IoBuf::from(vec![3; 301])];
    queue.tx(&frame(&payload)).unwrap();
    queue.flush();
    drop((got, queue));
    let written = std::fs::read(&to).unwrap();
    assert_eq!(written[24 + 16..], bytes_of(&payload));
    std::fs::remove_dir_all(&dir).unwrap();
}
