//! The figures: `cargo bench -p millstream-apps --bench figures -- [--only NAME]`.
//!
//! Writes `target/bench/results.json` and prints the same as a table beside the targets. What cannot
//! be measured here is named with the reason, and the exit code says so.

#![forbid(unsafe_code)]

mod callgrind;
mod cleanup;
mod copies;
mod documents;
mod dpdk;
mod figure;
mod goodput;
mod http;
mod idle;
mod memory;
#[path = "../../../stack/buf/tests/oracle/mod.rs"]
mod oracle;
mod rbc;
mod rest;
mod scripts;
mod segments;
mod sim;
mod smol;
mod splice;
mod timer;
#[path = "../../src/bench/transfers.rs"]
mod transfers;
mod world;

use std::alloc::System;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use figure::{Figure, TABLE};

/// Counts what is allocated: for the memory of connections, and to see that the packet path takes none.
#[global_allocator]
pub static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Measures the figures of millstream.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only figures whose name has this in it; several may be given.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Where the results go; else target/bench/results.json.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// What this process is in a figure that needs several.
    #[arg(long, hide = true, num_args = 1..)]
    role: Vec<String>,
}

type Measured = Result<Vec<Figure>, Box<dyn Error>>;

/// What is measured together, because it is compared or shares its set-up.
struct Group {
    names: &'static [&'static str],
    measure: fn() -> Measured,
    /// Runs in this thread and is to stay on one CPU.
    pinned: bool,
    /// Runs before everything else on its CPU, see [`urgent`].
    urgent: bool,
}

const GROUPS: &[Group] = &[
    Group {
        names: &[
            "pingpong.mem.cycles",
            "pingpong.mem.vs_smoltcp",
            "control.pingpong.mem.allocations",
        ],
        measure: memory::pingpong,
        pinned: true,
        urgent: true,
    },
    Group {
        names: &["pingpong.mem.instructions"],
        measure: callgrind::pingpong,
        pinned: false,
        urgent: false,
    },
    Group {
        names: &["tcp.segment_in.instructions", "tcp.segment_out.instructions"],
        measure: callgrind::segments,
        pinned: false,
        urgent: false,
    },
    Group {
        names: &["pingpong.mem.cycles.10k"],
        measure: memory::many,
        pinned: true,
        urgent: true,
    },
    Group {
        names: &["bulk.mem.cycles_per_segment", "bulk.mem.vs_smoltcp"],
        measure: memory::bulk,
        pinned: true,
        urgent: true,
    },
    Group { names: &["pingpong.ring.cycles"], measure: dpdk::ring, pinned: false, urgent: true },
    Group { names: &["pingpong.memif.rps"], measure: dpdk::memif, pinned: false, urgent: true },
    Group { names: &["segment.extbuf_ns"], measure: dpdk::extbuf, pinned: false, urgent: true },
    Group {
        names: &["bulk.mem.gbps", "bulk.copied_per_byte"],
        measure: memory::file,
        pinned: true,
        urgent: true,
    },
    Group {
        names: &[
            "http.tap.rps_vs_nginx",
            "http.tap.p99_vs_nginx",
            "http.af_packet.rps_vs_nginx",
            "http.af_packet.p99_vs_nginx",
            "http.memif.rps_vs_nginx",
        ],
        measure: http::all,
        pinned: false,
        urgent: false,
    },
    Group {
        names: &["tcp.goodput.cubic.vs_linux"],
        measure: goodput::cubic,
        pinned: false,
        urgent: false,
    },
    Group {
        names: &["tcp.goodput.bbr.vs_linux"],
        measure: goodput::bbr,
        pinned: false,
        urgent: false,
    },
    Group { names: &["tcp.goodput.cells"], measure: goodput::table, pinned: false, urgent: false },
    Group {
        names: &["timer.check_ns", "timer.insert_cancel_cycles"],
        measure: timer::costs,
        pinned: true,
        urgent: true,
    },
    Group {
        names: &["timer.100khz.core_percent", "timer.100khz.signal_core_percent"],
        measure: timer::rate,
        pinned: true,
        urgent: true,
    },
    Group {
        names: &["timer.bound_violations"],
        measure: timer::bound,
        pinned: true,
        urgent: false,
    },
    Group {
        names: &["polling.quota.best_vs_wake"],
        measure: rest::quota,
        pinned: false,
        urgent: false,
    },
    Group {
        names: &["idle.core_percent", "idle.wakeup_us.p50"],
        measure: rest::idle,
        pinned: false,
        urgent: false,
    },
    Group {
        names: &["mem.idle_connection_bytes"],
        measure: idle::idle,
        pinned: true,
        urgent: true,
    },
    Group {
        names: &["control.tsc_ghz", "control.memcpy_1460_ns"],
        measure: memory::control,
        pinned: true,
        urgent: true,
    },
    Group {
        names: &[
            "rbc.response.max_error_percent",
            "rbc.response.100pkt.iw1.cut_percent",
            "rbc.response.100pkt.iw10.cut_percent",
        ],
        measure: rbc::response,
        pinned: false,
        urgent: false,
    },
    Group {
        names: &["pacing.error_us.p50", "pacing.error_us.p99"],
        measure: rbc::accuracy,
        pinned: true,
        urgent: true,
    },
    Group { names: &["sim.seeds_ok"], measure: sim::seeds, pinned: false, urgent: false },
    Group { names: &["tcp.fairness.jain"], measure: sim::fairness, pinned: false, urgent: false },
    Group {
        names: &["packetdrill.kernel.pass"],
        measure: scripts::kernel,
        pinned: false,
        urgent: false,
    },
    Group { names: &["tcp.tail_loss.fct_ratio"], measure: sim::tail, pinned: false, urgent: false },
    Group { names: splice::WAKEUPS, measure: splice::wakeups, pinned: true, urgent: true },
    Group { names: splice::VERSUS, measure: splice::versus, pinned: true, urgent: true },
    Group {
        names: splice::DISK_TO_WIRE,
        measure: splice::disk_to_wire,
        pinned: true,
        urgent: true,
    },
    Group {
        names: splice::WORKING_SET,
        measure: splice::working_set,
        pinned: false,
        urgent: false,
    },
    Group {
        names: splice::VERSUS_SENDFILE,
        measure: splice::versus_sendfile,
        pinned: false,
        urgent: false,
    },
    Group {
        names: &["buf.clone_drop_ns"],
        measure: copies::clone_drop,
        pinned: true,
        urgent: true,
    },
    Group {
        names: &[
            "semantics.emulated_copy_vs_share.64k",
            "semantics.emulated_copy_vs_cold_copy.64k",
            "semantics.threshold_regret_percent",
        ],
        measure: copies::semantics,
        pinned: true,
        urgent: true,
    },
    Group {
        names: &[
            "cache.trace.vs_copying",
            "cache.trace.vs_no_memo",
            "cache.touched_bytes_per_response",
        ],
        measure: documents::trace,
        pinned: true,
        urgent: false,
    },
    Group { names: &["oracle.ops"], measure: copies::oracle, pinned: false, urgent: false },
];

/// The CPUs of the side that is measured and of the side that generates; the same if there is one.
pub fn cpus() -> (usize, usize) {
    let allowed = sched_getaffinity(None).unwrap_or_default();
    let mut list = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let first = list.next().unwrap_or(0);
    (first, list.next().unwrap_or(first))
}

/// The ordinary priority of a process, and the highest, which needs privilege.
const NICE: i32 = 0;
const URGENT: i32 = -20;

/// Before everything else that wants this CPU, where that is allowed: what shares the machine then
/// spoils fewer runs. Only for what asks nothing of the kernel, whose own threads would wait too.
pub fn urgent() {
    let _ = setpriority_process(None, URGENT);
}

/// Keeps this thread on one CPU while `measure` runs.
fn pinned(measure: fn() -> Measured) -> Measured {
    let before = sched_getaffinity(None)?;
    let mut one = CpuSet::new();
    one.set(cpus().1);
    sched_setaffinity(None, &one)?;
    urgent();
    let measured = measure();
    let _ = setpriority_process(None, NICE);
    sched_setaffinity(None, &before)?;
    measured
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !arguments.role.is_empty() {
        let role: Vec<_> = arguments.role.iter().map(String::as_str).collect();
        let result = match role[..] {
            ["callgrind", what, count] => callgrind::role(what, count.parse().unwrap_or(0)),
            ["ring"] => dpdk::ring_role(),
            ["extbuf"] => dpdk::extbuf_role(),
            ["memif-server", socket] => dpdk::memif_server_role(socket),
            ["memif-client", socket] => dpdk::memif_client_role(socket),
            ["relay", words] => goodput::relay_role(words),
            ["goodput-send", address, controller] => goodput::send_role(address, controller),
            ["goodput-receive", address, seconds] => {
                goodput::receive_role(address, seconds.parse().unwrap_or(1))
            }
            _ => Err("no such role".into()),
        };
        return match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    cleanup::on_interrupt();
    let wanted = |name: &str| {
        arguments.only.is_empty() || arguments.only.iter().any(|part| name.contains(part.as_str()))
    };
    let huge_pages = cleanup::HugePages::reserve();
    match &huge_pages {
        Some(pages) => {
            eprintln!("{} huge pages are reserved for the time of the runs", pages.count)
        }
        None => eprintln!("no huge pages could be reserved: ordinary ones are measured"),
    }
    let mut figures = Vec::new();
    for group in GROUPS {
        let names: Vec<_> = group.names.iter().filter(|name| wanted(name)).collect();
        if names.is_empty() {
            continue;
        }
        let start = Instant::now();
        eprint!("{} ... ", group.names.join(", "));
        let measured = if group.pinned { pinned(group.measure) } else { (group.measure)() };
        eprintln!("{:.1} s", start.elapsed().as_secs_f64());
        match measured {
            Ok(measured) => {
                let measured = measured.into_iter().filter(|figure| wanted(&figure.name));
                figures.extend(measured.map(|figure| circumstances(figure, group.urgent)));
            }
            Err(error) => {
                let why = error.to_string();
                figures.extend(names.into_iter().map(|name| Figure::missing(name, &why)));
            }
        }
    }
    if figures.is_empty() {
        let names: Vec<_> = TABLE.iter().map(|entry| entry.name).collect();
        eprintln!("no figure is called so; there are:\n{}", names.join("\n"));
        return ExitCode::FAILURE;
    }
    let order = |figure: &Figure| TABLE.iter().position(|entry| entry.name == figure.name);
    figures.sort_by_key(order);
    finish(&figures, arguments.output.unwrap_or_else(default_output))
}

/// Adds what may have spoiled a figure: the load of the machine, and the priority it was given.
fn circumstances(figure: Figure, urgent: bool) -> Figure {
    let load = std::fs::read_to_string("/proc/loadavg").ok();
    let load = load.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    let priority = if urgent { "nice -20 where allowed" } else { "ordinary" };
    figure.with("load_average_1_min", json!(load)).with("priority", json!(priority))
}

fn default_output() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    target.join("bench/results.json")
}

fn finish(figures: &[Figure], output: PathBuf) -> ExitCode {
    println!("{}", figure::table(figures));
    let text = serde_json::to_string_pretty(figures).unwrap_or_default() + "\n";
    let written = output
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&output, text));
    if let Err(error) = written {
        eprintln!("cannot write {}: {error}", output.display());
        return ExitCode::FAILURE;
    }
    println!("written to {}", output.display());
    let missing: Vec<_> = figures.iter().filter(|figure| figure.value.is_none()).collect();
    let short = figures.iter().filter(|figure| figure.reaches() == Some(false)).count();
    println!(
        "{} figures, {} short of their target, {} not measured",
        figures.len(),
        short,
        missing.len()
    );
    if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) }
}
