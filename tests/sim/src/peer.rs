//! One end ours, one end smoltcp, over the same impaired paths.

use std::net::SocketAddrV4;
use std::rc::Rc;

use millstream_sim::{Direction, Flapper, Flaps, Node, Rng, pair, step};
use millstream_timer::{Clock, Instant, VirtualClock};

use crate::flows::{Board, Pattern, Progress, Side, client, serve};
use crate::oracle::Measured;
use crate::scenario::{Ending, Fault, Scenario};
use crate::smol::{SmolConfig, SmolHost};
use crate::world::{CLIENT, PORT, SERVER, Station, Watch, boot, sim_disk};

/// Virtual time after which a run has not come to an end.
const SECONDS_MAX: u64 = 200_000;

/// The scenario of a seed, with one plain connection, and which side is smoltcp's.
fn draw(seed: u64) -> (Scenario, Side, SmolConfig) {
    let mut scenario = Scenario::from_seed(seed);
    let rng = &mut Rng::new(seed ^ 0x51);
    scenario.flows.truncate(1);
    scenario.fault = Fault::None;
    // smoltcp computes and verifies checksums itself.
    scenario.link.checksum_offload = false;
    // It gives up nothing, but an outage that swallows all its SYNs costs hours.
    scenario.flaps = Flaps { count: scenario.flaps.count.min(1), ..scenario.flaps };
    for flow in &mut scenario.flows {
        if matches!(flow.ending, Ending::Abort(_)) {
            flow.ending = Ending::Shutdown;
        }
    }
    let side = if rng.chance(0.5) { Side::Client } else { Side::Server };
    let config = SmolConfig {
        address: if side == Side::Client { CLIENT } else { SERVER },
        station: if side == Side::Client { 1 } else { 2 },
        buffer_bytes: crate::rand::spread_u64(rng, 2000, 1 << 20) as usize,
        nagle: rng.chance(0.5),
        timestamps: rng.chance(0.5),
        seed,
    };
    (scenario, side, config)
}

/// Plays a seed against smoltcp.
///
/// # Errors
/// What did not hold.
pub fn run_against_smoltcp(seed: u64) -> Result<Measured, String> {
    let (scenario, side, config) = draw(seed);
    play(&scenario, side, config)
        .map_err(|what| format!("smoltcp as {side:?}: {what}\n  {scenario} | {config:?}"))
}

fn play(scenario: &Scenario, smol_side: Side, config: SmolConfig) -> Result<Measured, String> {
    let clock = VirtualClock::at(Instant::from_micros(1_000_000));
    let (a, b, wire) = pair(&clock, &scenario.link).map_err(|error| error.to_string())?;
    let board: Board = Rc::default();
    board.borrow_mut().push(Progress::default());
    let watch = Rc::new(Watch::new(Rc::clone(&board)));
    let mut flapper = Flapper::new(&wire, &clock, scenario.flaps);
    let disk = sim_disk(&clock, scenario.seed);
    let flow = scenario.flows[0];
    let (mut ours, mut smol) = match smol_side {
        Side::Server => {
            let receives = Pattern::up(0);
            let sends = (Pattern::down(0), flow.down);
            let mut smol = SmolHost::new(&clock, b, config, &[], sends, receives);
            smol.skip = crate::flows::PROLOGUE as u64;
            smol.listen(PORT);
            (boot(&clock, &watch, scenario, &scenario.client, CLIENT, a, &disk), smol)
        }
        Side::Client => {
            let sends = (Pattern::up(0), flow.up);
            let number = 0u32.to_be_bytes();
            let mut smol = SmolHost::new(&clock, a, config, &number, sends, Pattern::down(0));
            smol.connect(SERVER, PORT, 50_000);
            (boot(&clock, &watch, scenario, &scenario.server, SERVER, b, &disk), smol)
        }
    };
    let Station::Up(shard, _) = &ours else { return Err("the host did not start".into()) };
    let stack = shard.stack().clone();
    match smol_side {
        Side::Server => {
            let task =
                client(stack.clone(), SocketAddrV4::new(SERVER, PORT), 0, flow, Rc::clone(&board));
            stack.spawn(task).map_err(|error| error.to_string())?;
        }
        Side::Client => {
            let listener = stack.listen(SocketAddrV4::new(SERVER, PORT), 4);
            let listener = listener.map_err(|error| error.to_string())?;
            let flows = scenario.flows.clone().into();
            let task = serve(stack.clone(), listener, flows, Rc::clone(&board));
            stack.spawn(task).map_err(|error| error.to_string())?;
        }
    }
    let ours_done = |board: &Board| {
        let board = board.borrow();
        match smol_side {
            Side::Server => board[0].client_done,
            Side::Client => board[0].server_done.1,
        }
    };
    let state = |smol: &SmolHost| {
        let board = board.borrow();
        let end = if smol_side == Side::Server { &board[0].client } else { &board[0].server };
        let info = end.stream.upgrade().and_then(|stream| stream.info());
        format!(
            "at {:.3} s ours {end:?} {info:?} refused {:?}, smoltcp {:?} written {} read {}, {wire:?}",
            clock.now().as_nanos() as f64 / 1e9,
            board[0].refused,
            smol.state(),
            smol.written,
            smol.read
        )
    };
    let mut disk_node = disk.clone();
    let mut wire_node = wire.clone();
    while !(ours_done(&board) && smol.finished && stack.connections() == 0) {
        let mut nodes: [&mut dyn Node; 5] =
            [&mut flapper, &mut ours, &mut smol, &mut wire_node, &mut disk_node];
        let more = step(&clock, &mut nodes, Instant::FAR_FUTURE);
        let in_time = clock.now() < Instant::from_micros(SECONDS_MAX * 1_000_000);
        let over = ours_done(&board) && smol.finished && stack.connections() == 0;
        if !over && (more.is_none() || !in_time) {
            return Err(format!("wedge: {}", state(&smol)));
        }
    }
    let said = state(&smol);
    let board = board.borrow();
    let (end, expected, sent) = match smol_side {
        Side::Server => (&board[0].client, flow.down, flow.up),
        Side::Client => (&board[0].server, flow.up, flow.down),
    };
    let smol_read = smol.read - smol.skip;
    let whole = end.read == expected
        && end.differs_at.is_none()
        && matches!(end.reading, Some(Ok(())))
        && matches!(end.writing, Some(Ok(())))
        && smol_read == sent
        && smol.differs_at.is_none();
    if !whole {
        return Err(format!("stream: {said}"));
    }
    let rx = stack.rx_metrics();
    if rx.unaccounted() != 0 || rx.frames_waiting != 0 || stack.slices_in_use() != 0 {
        return Err(format!("account: {rx:?}, {} slices", stack.slices_in_use()));
    }
    let stats = [Direction::AToB, Direction::BToA].map(|direction| wire.stats(direction));
    Ok(Measured {
        frames: stats.iter().map(|stats| stats.offered).sum(),
        dropped: stats.iter().map(|stats| stats.dropped()).sum(),
        bytes: end.read + smol_read,
        end_nanos: clock.now().as_nanos(),
        ..Measured::default()
    })
}
