//! Containers, policies and dispositions on whole shards: a host whose time is work, under floods.

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use common::host::{Host, ask, serve_datagrams};
use common::{pattern, server_at};
use millstream_core::{
    ContainerId, ContainerSpec, Disposition, Limits, ListenError, RxPolicy, Scheduling, Stack,
    TcpStream,
};
use millstream_timer::{Clock, Stage};

/// What the application takes for a request.
const WORK_NANOS: u64 = 10_000;
/// Requests a second that one core serves, about.
const CAPACITY: f64 = 98_000.0;

fn spec(name: &str, parent: Option<&str>, share: f64) -> ContainerSpec {
    ContainerSpec {
        parent: parent.map(str::to_owned),
        share_percent: Some(share),
        ..ContainerSpec::new(name)
    }
}

fn counter() -> Rc<Cell<u64>> {
    Rc::default()
}

/// A datagram service of a container; returns the count of what it served.
fn service(host: &Host, container: ContainerId, port: u16) -> Rc<Cell<u64>> {
    let (stack, done) = (host.stack(), counter());
    let task = serve_datagrams(stack.clone(), port, host.cpu.clone(), WORK_NANOS, Rc::clone(&done));
    stack.spawn_in(container, task).unwrap();
    done
}

/// What the containers were charged together.
fn charged(stack: &Stack) -> u64 {
    let leaf_names = |name: &str| !name.starts_with("parent");
    let reports = stack.containers().into_iter().filter(|report| leaf_names(&report.name));
    reports.map(|report| report.usage.cpu_nanos).sum()
}

#[test]
fn charges_add_up_to_what_the_processor_did() {
    for policy in RxPolicy::ALL {
        let mut host = Host::new(policy);
        let specs =
            [spec("parent", None, 60.0), spec("a", Some("parent"), 50.0), spec("b", None, 20.0)];
        let ids = host.stack().create_containers(&specs).unwrap();
        let done = [service(&host, ids[1], 1), service(&host, ids[2], 2)];
        host.blast(1, 3.0 * CAPACITY);
        host.blast(2, 0.2 * CAPACITY);
        host.syns(80, 50_000.0);
        host.run_for(50_000);
        let (sum, busy) = (charged(&host.stack()), host.cpu.busy_nanos());
        let error = (sum as f64 / busy as f64 - 1.0).abs();
        assert!(error < 0.001, "{policy:?}: {sum} of {busy}");
        assert_eq!(host.stack().metrics().busy_nanos, sum);
        assert!(done.iter().all(|done| done.get() > 0), "{policy:?}");
        assert_eq!(host.stack().rx_metrics().unaccounted(), 0);
    }
}

#[test]
fn shares_hold_within_half_a_percent_over_100_ms() {
    let mut host = Host::new(RxPolicy::Lrp);
    let specs = [
        spec("parent", None, 70.0),
        spec("a", Some("parent"), 60.0),
        spec("b", Some("parent"), 40.0),
        spec("c", None, 20.0),
        spec("d", None, 10.0),
    ];
    let ids = host.stack().create_containers(&specs).unwrap();
    let leaves = [(ids[1], 42.0), (ids[2], 28.0), (ids[3], 20.0), (ids[4], 10.0)];
    for (number, (leaf, _)) in leaves.iter().enumerate() {
        service(&host, *leaf, 1 + number as u16);
        host.blast(1 + number as u16, 1.5 * CAPACITY);
    }
    host.run_for(20_000);
    let of = |host: &Host| {
        leaves.map(|(leaf, _)| host.stack().container_usage(leaf).unwrap().cpu_nanos as f64)
    };
    for _ in 0..3 {
        let before = of(&host);
        host.run_for(100_000);
        let after = of(&host);
        let used: Vec<f64> =
            after.iter().zip(before).map(|(after, before)| after - before).collect();
        let all: f64 = used.iter().sum();
        for (used, (_, due)) in used.iter().zip(leaves) {
            let got = used * 100.0 / all;
            assert!((got - due).abs() <= 0.5, "{got} % for {due} %");
        }
    }
}

/// Datagrams served a second, at so many times the capacity.
fn goodput(policy: RxPolicy, load: f64) -> f64 {
    let mut host = Host::new(policy);
    let id = host.stack().create_container(&ContainerSpec::new("service")).unwrap();
    let done = service(&host, id, 1);
    host.blast(1, load * CAPACITY);
    host.run_for(20_000);
    let before = done.get();
    host.run_for(50_000);
    (done.get() - before) as f64 * 20.0
}

#[test]
fn twenty_times_the_load_does_not_stop_the_service() {
    let peak = goodput(RxPolicy::Lrp, 1.0).max(goodput(RxPolicy::Lrp, 2.0));
    let flooded = goodput(RxPolicy::Lrp, 20.0);
    assert!(flooded >= 0.93 * peak, "{flooded} of {peak}");
    // Who looks into everything first has less left.
    let eager = goodput(RxPolicy::Eager, 20.0);
    assert!(eager < 0.95 * flooded, "{eager} against {flooded}");
}

#[test]
fn an_innocent_client_hardly_notices_a_flood_of_another_service() {
    let p99 = |load: f64| {
        let mut host = Host::new(RxPolicy::Lrp);
        let specs = [spec("flooded", None, 50.0), spec("innocent", None, 40.0)];
        let ids = host.stack().create_containers(&specs).unwrap();
        service(&host, ids[0], 1);
        service(&host, ids[1], 2);
        host.blast(1, load * CAPACITY);
        let took: Rc<RefCell<Vec<u64>>> = Rc::default();
        host.client.spawn(ask(host.client.clone(), 2, 97, Rc::clone(&took))).unwrap();
        host.run_for(100_000);
        let mut took = took.borrow().clone();
        took.sort_unstable();
        assert!(took.len() > 300, "{}", took.len());
        took[took.len() * 99 / 100]
    };
    let (calm, flooded) = (p99(0.0), p99(20.0));
    assert!(flooded <= 2 * calm, "{flooded} us after {calm} us");
}

/// Connections that 16 clients opened, asked once and closed, over and over, in 50 ms.
fn requests_under_syns(rate: f64, filtered: bool) -> u64 {
    let limits = Limits { connections: 1024, channel_packets: 4096, ..common::small_limits() };
    let mut host = Host::with(RxPolicy::Lrp, Scheduling::default(), limits);
    let stack = host.stack();
    let low = ContainerSpec { priority: 1, ..ContainerSpec::new("attackers") };
    let ids = stack.create_containers(&[ContainerSpec::new("clients"), low]).unwrap();
    let everybody = stack.listen_filtered(server_at(80), 64, "0.0.0.0/0".parse().unwrap(), ids[1]);
    let mut listeners = vec![(everybody.unwrap(), ids[1])];
    if filtered {
        let ours = "198.18.0.0/24".parse().unwrap();
        listeners.push((stack.listen_filtered(server_at(80), 64, ours, ids[0]).unwrap(), ids[0]));
    }
    for (listener, id) in listeners {
        let (spawner, cpu) = (stack.clone(), host.cpu.clone());
        let accept = async move {
            loop {
                let (stream, _) = listener.accept().await;
                let cpu = cpu.clone();
                let answer = async move {
                    if let Ok(Some(_)) = stream.read_buf().await {
                        cpu.work(WORK_NANOS);
                        let _ = stream.write_all(b"answer").await;
                    }
                };
                drop(spawner.spawn(answer));
            }
        };
        stack.spawn_in(id, accept).unwrap();
    }
    let done = counter();
    for _ in 0..16 {
        let (client, count) = (host.client.clone(), Rc::clone(&done));
        let asking = async move {
            loop {
                let Ok(stream) = client.connect(server_at(80)).await else { continue };
                let _ = stream.write_all(b"question").await;
                if matches!(stream.read_buf().await, Ok(Some(_))) {
                    count.set(count.get() + 1);
                }
                stream.abort();
            }
        };
        host.client.spawn(asking).unwrap();
    }
    host.syns(80, rate);
    host.run_for(50_000);
    assert_eq!(stack.rx_metrics().unaccounted(), 0);
    done.get()
}

#[test]
fn a_filtered_listener_keeps_its_clients_under_a_flood_of_syns() {
    let calm = requests_under_syns(0.0, true);
    let flooded = requests_under_syns(5e6, true);
    assert!(calm > 100 && flooded * 10 >= calm * 8, "{flooded} of {calm}");
    let unfiltered = requests_under_syns(5e6, false);
    assert!(unfiltered * 2 < calm, "{unfiltered} of {calm}: the flood does no harm");
}

#[test]
fn filters_of_one_port_are_checked() {
    let host = Host::new(RxPolicy::Lrp);
    let stack = host.stack();
    let id = stack.create_container(&ContainerSpec::new("a")).unwrap();
    let listen =
        |prefix: &str| stack.listen_filtered(server_at(80), 4, prefix.parse().unwrap(), id);
    let all = listen("0.0.0.0/0").unwrap();
    let error = listen("0.0.0.0/0").err().unwrap();
    assert!(matches!(error, ListenError::Shadowed(..)) && error.to_string().contains("no client"));
    assert_eq!(stack.listen(server_at(80), 4).err(), Some(ListenError::InUse(80)));
    assert!(stack.remove_container(id).is_err(), "a listener is bound to it");
    drop(all);
    stack.remove_container(id).unwrap();
    drop(stack.listen(server_at(80), 4).unwrap());
}

/// Sends a pattern to the host and returns the stream at the host's end.
fn connected(host: &mut Host, bytes: usize) -> (TcpStream, TcpStream) {
    let listener = host.stack().listen(server_at(80), 4).unwrap();
    let taken: Rc<RefCell<Vec<TcpStream>>> = Rc::default();
    let slot = Rc::clone(&taken);
    let accept = async move {
        let (stream, _) = listener.accept().await;
        slot.borrow_mut().push(stream);
    };
    host.stack().spawn(accept).unwrap();
    let client = host.client.clone();
    let sent: Rc<RefCell<Vec<TcpStream>>> = Rc::default();
    let slot = Rc::clone(&sent);
    let send = async move {
        let stream = client.connect(server_at(80)).await.unwrap();
        stream.write_all(&pattern(bytes, 1)).await.unwrap();
        slot.borrow_mut().push(stream);
    };
    host.client.spawn(send).unwrap();
    host.run_for(20_000);
    let (ours, theirs) = (taken.borrow_mut().pop(), sent.borrow_mut().pop());
    (ours.unwrap(), theirs.unwrap())
}

fn send(host: &Host, stream: TcpStream, bytes: usize) {
    let task = async move {
        stream.write_all(&pattern(bytes, 2)).await.unwrap();
        std::future::pending::<()>().await;
    };
    host.client.spawn(task).unwrap();
}

#[test]
fn dispositions_say_when_packets_are_processed() {
    let mut host = Host::new(RxPolicy::Srp);
    let (ours, theirs) = connected(&mut host, 1000);
    assert_eq!(ours.readable_bytes(), 1000);
    ours.set_disposition(Disposition::Block);
    send(&host, theirs, 5000);
    host.run_for(1_000);
    let lost_before = host.stack().rx_metrics().drop_connection_channel_full;
    assert_eq!(ours.readable_bytes(), 1000, "they wait");
    assert!(host.stack().rx_metrics().frames_waiting >= 4);
    // As much as is asked for, and one packet at least.
    assert_eq!(ours.extract(1), 1);
    assert_eq!(ours.readable_bytes(), 1000 + 1448);
    ours.set_disposition(Disposition::Async);
    host.run_for(50);
    assert_eq!(ours.readable_bytes(), 6000);
    assert_eq!(host.stack().rx_metrics().drop_connection_channel_full, lost_before);
}

#[test]
fn a_signal_is_caught_and_an_ignored_one_waits_for_the_reader() {
    let mut host = Host::new(RxPolicy::Srp);
    let (ours, theirs) = connected(&mut host, 1000);
    let ours = Rc::new(ours);
    let signals = counter();
    let (count, stream) = (Rc::clone(&signals), Rc::downgrade(&ours));
    ours.set_disposition(Disposition::Catch(Rc::new(move || {
        count.set(count.get() + 1);
        if count.get() > 1 {
            stream.upgrade().map(|stream| stream.extract(usize::MAX));
        }
    })));
    send(&host, theirs, 100);
    host.run_for(300);
    assert_eq!((signals.get(), ours.readable_bytes()), (1, 1000));
    // The peer sends it again: the second signal takes both.
    host.run_for(500_000);
    assert!(signals.get() >= 2);
    assert_eq!(ours.readable_bytes(), 1100);

    let mut host = Host::new(RxPolicy::Srp);
    let (ours, theirs) = connected(&mut host, 0);
    ours.set_disposition(Disposition::Ignore);
    send(&host, theirs, 3000);
    host.run_for(300);
    assert_eq!(ours.readable_bytes(), 0);
    let read = counter();
    let count = Rc::clone(&read);
    let reading = async move {
        while let Ok(Some(bytes)) = ours.read_buf().await {
            count.set(count.get() + bytes.len() as u64);
        }
    };
    host.stack().spawn(reading).unwrap();
    host.run_for(2_000);
    assert_eq!(read.get(), 3000);
}

#[test]
fn switching_policies_loses_nothing() {
    let mut host = Host::new(RxPolicy::Lrp);
    let stack = host.stack();
    let id = stack.create_container(&ContainerSpec::new("a")).unwrap();
    let listener = stack.listen_in(server_at(80), 4, id).unwrap();
    let bytes = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&bytes);
    let take = async move {
        let (stream, _) = listener.accept().await;
        while let Ok(Some(slice)) = stream.read_buf().await {
            sink.borrow_mut().extend_from_slice(&slice);
        }
    };
    stack.spawn_in(id, take).unwrap();
    let client = host.client.clone();
    let data = pattern(2_000_000, 5);
    let sent = data.clone();
    let task = async move {
        let stream = client.connect(server_at(80)).await.unwrap();
        stream.write_all(&sent).await.unwrap();
        stream.flushed().await.unwrap();
        stream
    };
    let _task = host.client.spawn(task).unwrap();
    for round in 0..400 {
        stack.set_rx_policy(RxPolicy::ALL[round % 4]);
        host.run_for(97);
    }
    host.run_for(2_000_000);
    assert!(*bytes.borrow() == data, "{} of {} bytes", bytes.borrow().len(), data.len());
    let rx = stack.rx_metrics();
    assert_eq!((rx.unaccounted(), rx.drop_connection_channel_full), (0, 0));
    assert_eq!(host.client.tcp_stats().rto_fired, 0);
}

/// The worst that a request of high priority waits, in microseconds, while workers are at work for
/// requests of low priority that take `low_micros`, and something in between wants the processor.
fn worst_blocking(low_micros: u64) -> u64 {
    let scheduling = Scheduling { turn_us: 2, ..Scheduling::default() };
    let mut host = Host::with(RxPolicy::Lrp, scheduling, common::small_limits());
    let stack = host.stack();
    let at = |name: &str, priority| ContainerSpec { priority, ..ContainerSpec::new(name) };
    let specs = [at("high", 60), at("middle", 40), at("low", 20), at("workers", 1)];
    let ids = stack.create_containers(&specs).unwrap();
    let (asking, queue) = stack.request_queue::<u64, ()>(16);
    for _ in 0..2 {
        let (queue, cpu) = (queue.clone(), host.cpu.clone());
        let worker = async move {
            loop {
                let request = queue.next().await;
                for _ in 0..request.value {
                    cpu.work(1_000);
                    wake_self().await;
                }
                request.reply(());
            }
        };
        stack.spawn_in(ids[3], worker).unwrap();
    }
    // Until the workers wait for requests.
    host.run_for(100);
    let low = asking.clone();
    let often = async move {
        loop {
            low.call(low_micros).await.unwrap();
        }
    };
    stack.spawn_in(ids[2], often).unwrap();
    let cpu = host.cpu.clone();
    let hog = async move {
        loop {
            cpu.work(1_000);
            wake_self().await;
        }
    };
    stack.spawn_in(ids[1], hog).unwrap();
    let worst = counter();
    let (noted, timer, cpu) = (Rc::clone(&worst), stack.clone(), host.cpu.clone());
    let high = async move {
        loop {
            timer.sleep(std::time::Duration::from_millis(1)).await;
            let asked = cpu.now();
            asking.call(5).await.unwrap();
            noted.set(noted.get().max(cpu.now().micros_since(asked)));
        }
    };
    stack.spawn_in(ids[0], high).unwrap();
    host.run_for(100_000);
    assert!(worst.get() > 0);
    // Five microseconds are its own work.
    worst.get() - 5
}

/// Lets others go first.
async fn wake_self() {
    let mut woken = false;
    std::future::poll_fn(|cx| {
        if woken {
            return std::task::Poll::Ready(());
        }
        woken = true;
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

#[test]
fn low_requests_do_not_hold_up_high_ones_however_long_they_take() {
    let (short, long) = (worst_blocking(10), worst_blocking(10_000));
    assert!(short <= 5 && long <= 5, "{short} and {long} us");
}

#[test]
fn a_task_that_never_gives_way_is_counted() {
    let mut host = Host::new(RxPolicy::Lrp);
    let (stack, cpu) = (host.stack(), host.cpu.clone());
    stack.create_container(&ContainerSpec::new("a")).unwrap();
    stack.spawn(async move { cpu.work(3_000_000) }).unwrap();
    host.run_for(5_000);
    let metrics = stack.metrics();
    assert_eq!(metrics.tasks_over_bound, 1);
    assert!(metrics.task_longest_nanos >= 3_000_000);
    assert!(host.cpu.count(Stage::Task) > 0);
}
