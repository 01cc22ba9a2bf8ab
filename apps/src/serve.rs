//! `millstream serve`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use millstream::core::{ContainerId, ContainerReport, Prefix, Stack, TcpListener};
use millstream::http::FileServer;
use millstream::link::LinkStats;

use crate::bench::{grouped, nanos};
use crate::cli::ServeArgs;
use crate::config::{Config, ContainerSection};
use crate::error::AppError;
use crate::node::Node;
use crate::output::say;
use crate::signals::{Reload, Stop};
use crate::source::{Watch, describe};

/// How often the loop looks for a signal.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Serves until a signal comes, then lets the open connections end.
pub fn run(args: &ServeArgs) -> Result<(), AppError> {
    let mut config = Config::load(&args.node.config, &args.node.overrides)?;
    if let Some(port) = args.listen {
        config.http.port = port;
    }
    // Before DPDK, which takes longer.
    let place = args.place();
    let source = place.open()?;
    let stop = Stop::install().map_err(AppError::runtime)?;
    let watch = Watch::start(place.clone(), Reload::install().map_err(AppError::runtime)?)?;
    let node = Node::open(&config)?;
    let address = config.listen_on(config.http.port);
    let stack = node.stack().clone();
    let listeners = listeners(&stack, &config, address)?;
    let fills = node.fill_queue()?;
    let server = node.unpinned(|| FileServer::new(&stack, source, fills, config.http.server()));
    let (rate, client_rates) = config.http.pacing_rates();
    for (listener, _) in &listeners {
        listener.set_pacing_rates(rate, &client_rates);
    }
    let urls = config.listens_on("http://", config.http.port);
    say(format_args!("serving {place} on {urls} | {}", node.facts()));

    let drain = Duration::from_secs(config.http.drain_s);
    let drained = server.clone();
    let (outcome, link) = node.run(|stack| async move {
        for (listener, container) in listeners {
            let accepting = drained.clone();
            let task = async move { accepting.serve(listener).await };
            stack.spawn_in(container, task).map_err(AppError::runtime)?;
        }
        while !stop.is_asked() {
            stack.sleep(LOOK_EVERY).await;
            match watch.take() {
                Some(Ok(source)) => {
                    say(format_args!("serving anew: {}", describe(&source)));
                    drained.set_source(source);
                }
                Some(Err(error)) => eprintln!("millstream: {error}; the old files are served on"),
                None => {}
            }
        }
        drained.drain();
        let until = stack.now() + drain;
        while drained.connections() > 0 && stack.now() < until {
            stack.sleep(LOOK_EVERY).await;
        }
        // The last FINs and their acknowledgements.
        stack.sleep(LOOK_EVERY).await;
        Ok::<_, AppError>(drained.connections())
    });
    let left = outcome?;
    if left > 0 {
        eprintln!(
            "millstream: {left} connections had not ended after {} s and were cut",
            drain.as_secs()
        );
    }
    say(summary(&server, &stack, &link));
    Ok(())
}

/// Makes the containers of the profile, and a listener for each of their clients' prefixes.
fn listeners(
    stack: &Stack,
    config: &Config,
    address: SocketAddr,
) -> Result<Vec<(TcpListener, ContainerId)>, AppError> {
    let specs: Vec<_> = config.container.iter().map(ContainerSection::spec).collect();
    let ids = stack.create_containers(&specs).map_err(AppError::usage)?;
    let mut filters = Vec::new();
    for (section, id) in config.container.iter().zip(ids) {
        filters.extend(section.clients()?.into_iter().map(|prefix| (prefix, id)));
    }
    let backlog = config.http.backlog;
    if filters.is_empty() {
        let listener = stack.listen(address, backlog).map_err(AppError::usage)?;
        return Ok(vec![(listener, ContainerId::DEFAULT)]);
    }
    // Whoever belongs to none of them, unless the profile says whose everybody is.
    for all in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
        let all = Prefix::of(all, 0).filter(|all| filters.iter().all(|(other, _)| other != all));
        filters.extend(all.map(|all| (all, ContainerId::DEFAULT)));
    }
    let listen = |(prefix, id)| {
        let listener = stack.listen_filtered(address, backlog, prefix, id);
        Ok((listener.map_err(AppError::usage)?, id))
    };
    filters.into_iter().map(listen).collect()
}

/// What each container has used, if there are several.
fn usages(stack: &Stack) -> Vec<String> {
    let reports = stack.containers();
    let busy: u64 = stack.metrics().busy_nanos.max(1);
    let several = reports.len() > 2;
    let line = |report: &ContainerReport| {
        let usage = &report.usage;
        let percent = usage.cpu_nanos as f64 * 100.0 / busy as f64;
        let name = format!("container {}", report.name);
        format!(
            "{name:<30}{percent:.1} % of {} busy, {} services, throttled {} times, {} bytes held",
            nanos(busy as f64),
            usage.served,
            usage.throttled,
            usage.held_bytes
        )
    };
    reports.iter().filter(|_| several).map(line).collect()
}

/// What was done, one line each; counters of what went wrong only if something did.
fn summary(server: &FileServer, stack: &Stack, link: &LinkStats) -> String {
    let http = server.stats();
    let shard = stack.metrics();
    let copied = shard.copied_api_bytes + link.tx_copied_bytes + stack.disk_stats().copied_bytes;
    let per_byte = copied as f64 / http.body_bytes.max(1) as f64;
    let mut lines = vec![
        ("requests", http.requests.to_string()),
        (
            "responses",
            format!(
                "{} 2xx, {} 3xx, {} 4xx, {} 5xx",
                http.status_2xx, http.status_3xx, http.status_4xx, http.status_5xx
            ),
        ),
        ("connections", http.connections.to_string()),
        ("body bytes", http.body_bytes.to_string()),
        ("from the disk", shard.spliced_bytes.to_string()),
        ("copied per byte", format!("{per_byte:.3}")),
    ];
    let cache = stack.cache_stats();
    if cache.blocks_max > 0 {
        let asked = cache.hits + cache.misses;
        lines.push(("blocks from the cache", format!("{} of {asked}", cache.hits)));
    }
    let troubles = [
        ("connections_refused", http.connections_refused),
        ("connections_broken", http.connections_broken),
        ("parse_errors", http.parse_errors),
        ("timeouts_header", http.timeouts_header),
        ("timeouts_send", http.timeouts_send),
        ("disk_errors", http.disk_errors),
        ("tcp_retransmits", stack.tcp_stats().retransmits),
        ("tcp_known_starts_failed", stack.tcp_stats().known_starts_failed),
        ("cache_fills_failed", http.cache_fills_failed),
        ("rx_missed", link.rx_missed),
        ("rx_errors", link.rx_errors),
        ("tx_errors", link.tx_errors),
    ];
    let rx = stack.rx_metrics();
    let drops = rx.iter().filter(|(name, _)| name.starts_with("drop_"));
    let other = shard.iter().filter(|(name, _)| {
        name.starts_with("drop_")
            || name.starts_with("syn_cookies_")
            || *name == "time_wait_recycled"
    });
    let all = troubles.into_iter().chain(drops).chain(other).filter(|(_, count)| *count > 0);
    lines.extend(all.map(|(name, count)| (name, count.to_string())));
    if let Some(stats) = stack.trigger_stats() {
        let intervals = stats.intervals_ns();
        let at = |quantile| nanos(intervals.value_at_quantile(quantile) as f64);
        let text =
            format!("p50 {}, p99 {}, max {}", at(0.5), at(0.99), nanos(intervals.max() as f64));
        lines.push(("trigger points", grouped(stats.total())));
        lines.push(("between two of them", text));
        let answers = stats.answer_ns();
        if !answers.is_empty() {
            let p50 = nanos(answers.value_at_quantile(0.5) as f64);
            lines.push(("first segment after a waking", format!("p50 {p50} of {}", answers.len())));
        }
    }
    let lines = lines.iter().map(|(name, value)| format!("{name:<30}{value}"));
    let lines: Vec<_> = lines.chain(usages(stack)).collect();
    lines.join("\n")
}
