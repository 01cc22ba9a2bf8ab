//! What it costs to send 1460 bytes of payload without copying them: build the headers' mbuf,
//! attach the payload, hand both to a device that swallows them, take the reference back.
//!
//! `cargo run --release -p dpdk-port --example extbuf`

use std::time::Instant;

use dpdk_port::{Device, Eal, EalConfig, Port, PortConfig};
use millstream_buf::{Arena, ArenaConfig, SizeClass};
use millstream_link::{Link, TxFrame};

const ROUNDS: usize = 20;
const FRAMES: usize = 200_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let eal = Eal::init(&EalConfig::default())?;
    let config = PortConfig::new(Device::Null { frame_bytes: 64, rx: false });
    let mut queue = Port::open(eal, &config)?.take_queue(0).ok_or("no queue")?.bind()?;
    let arena = Arena::new(&ArenaConfig::default())?;
    let header = [0x5a_u8; 54];

    // As a server does it: one handle after the other on segments of 16 KiB blocks.
    let blocks: Vec<_> = (0..64)
        .filter_map(|_| arena.alloc(SizeClass::Block))
        .map(|block| block.freeze(0..16_060))
        .collect();
    let slices: Vec<_> = blocks
        .iter()
        .flat_map(|block| (0..11).map(|i| block.slice(i * 1460..(i + 1) * 1460)))
        .collect();
    let inline: Vec<_> = blocks.iter().map(|block| block.slice(0..100)).collect();
    for (name, payload) in [("segment.extbuf_ns", &slices), ("segment.inline_100_ns", &inline)] {
        let mut best = f64::MAX;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let mut sent = 0;
            while sent < FRAMES {
                for slice in payload {
                    let payload = std::slice::from_ref(slice);
                    queue.tx(&TxFrame { header: &header, payload, offload: Default::default() })?;
                    sent += 1;
                }
            }
            queue.flush();
            best = best.min(start.elapsed().as_nanos() as f64 / sent as f64);
        }
        println!("{name} {best:.1}");
    }
    let stats = queue.stats();
    println!("frames {} copied bytes {}", stats.tx_frames, stats.tx_copied_bytes);
    Ok(())
}
