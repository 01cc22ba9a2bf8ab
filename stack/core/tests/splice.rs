//! Files from the disk queue into a connection.

mod common;

use std::time::Duration;

use common::{World, pattern, server_at, small_limits};
use millstream_core::{Limits, SendFileError};
use millstream_disk::{File, MemDisk};

/// The server sends `range` of a file to whoever connects, then closes; the client collects.
fn fetch(world: &mut World, file: File, range: std::ops::Range<u64>) -> (Vec<u8>, u64) {
    let listener = world.server.stack().listen(server_at(80), 64).unwrap();
    let server = world.server.stack().clone();
    let polls_before = server.task_polls();
    let sending = world
        .server
        .stack()
        .spawn(async move {
            let (stream, _) = listener.accept().await;
            stream.send_file(&file, range).await
        })
        .unwrap();
    let stack = world.client.stack().clone();
    let got = world.client_runs(async move {
        let stream = stack.connect(server_at(80)).await.unwrap();
        let mut got = Vec::new();
        while let Some(buf) = stream.read_buf().await.unwrap() {
            got.extend_from_slice(&buf);
        }
        got
    });
    let outcome = world.output_of(&sending);
    outcome.unwrap();
    (got, server.task_polls() - polls_before)
}

#[test]
fn ranges_arrive_byte_exact_and_uncopied() {
    let data = pattern(300_000, 9);
    for range in
        [0..300_000, 1..300_000, 4095..4097, 16_384..32_768, 16_383..49_153, 299_999..300_000, 7..7]
    {
        let mut world = World::new();
        let file = File::in_memory(data.clone());
        let (got, _) = fetch(&mut world, file, range.clone());
        assert!(got == data[range.start as usize..range.end as usize], "{range:?}");
        let metrics = world.server.stack().metrics();
        assert_eq!(metrics.copied_api_bytes, 0);
        assert_eq!(metrics.spliced_bytes, range.end - range.start);
        world.settle();
        world.assert_clean(false);
    }
}

#[test]
fn the_application_is_woken_as_often_for_a_large_file_as_for_a_small_one() {
    let polls = |len: usize| {
        let mut world = World::new();
        fetch(&mut world, File::in_memory(pattern(len, 3)), 0..len as u64).1
    };
    let small = polls(64 * 1024);
    assert_eq!(small, polls(8 * 1024 * 1024));
    // Started, accepted, finished.
    assert!(small <= 3, "{small}");
}

#[test]
fn few_buffers_serve_many_connections() {
    let limits = Limits { splice_buffers: 4, disk_depth: 4, ..small_limits() };
    let mut world = World::with(limits, 6, |_| Box::new(MemDisk::copying(4).unwrap()));
    let data = pattern(200_000, 4);
    let file = File::in_memory(data.clone());
    let listener = world.server.stack().listen(server_at(80), 64).unwrap();
    let server = world.server.stack().clone();
    world
        .server
        .stack()
        .spawn(async move {
            loop {
                let (stream, _) = listener.accept().await;
                let file = file.clone();
                server
                    .spawn(async move { stream.send_file(&file, 0..file.len()).await.unwrap() })
                    .unwrap();
            }
        })
        .unwrap();
    let stack = world.client.stack().clone();
    let mut handles = Vec::new();
    for _ in 0..20 {
        let connecting = stack.clone();
        handles.push(
            stack
                .spawn(async move {
                    let stream = connecting.connect(server_at(80)).await.unwrap();
                    let mut got = Vec::new();
                    while let Some(buf) = stream.read_buf().await.unwrap() {
                        got.extend_from_slice(&buf);
                    }
                    got
                })
                .unwrap(),
        );
    }
    for handle in handles {
        assert!(world.output_of(&handle) == data);
    }
    assert!(world.server.stack().metrics().splice_parked > 0, "the buffers were scarce");
    world.settle();
    world.assert_clean(false);
}

#[test]
fn a_peer_that_leaves_takes_its_transfer_along() {
    let mut world = World::new();
    let file = File::in_memory(pattern(4_000_000, 4));
    let listener = world.server.stack().listen(server_at(80), 64).unwrap();
    let sending = world
        .server
        .stack()
        .spawn(async move {
            let (stream, _) = listener.accept().await;
            stream.send_file(&file, 0..file.len()).await
        })
        .unwrap();
    let stack = world.client.stack().clone();
    world.client_runs(async move {
        let stream = stack.connect(server_at(80)).await.unwrap();
        stream.read_buf().await.unwrap();
        stream.abort();
    });
    let outcome = world.output_of(&sending);
    assert!(matches!(outcome, Err(SendFileError::Connection(_))), "{outcome:?}");
    world.settle();
    world.assert_clean(false);
}

#[test]
fn a_range_beyond_the_file_is_refused() {
    let mut world = World::new();
    let listener = world.server.stack().listen(server_at(80), 64).unwrap();
    let server = world.server.stack().clone();
    let outcome = world
        .server
        .stack()
        .spawn(async move {
            let (stream, _) = listener.accept().await;
            let outcome = stream.send_file(&File::in_memory(vec![0; 10]), 5..11).await;
            server.sleep(Duration::from_millis(1)).await;
            outcome
        })
        .unwrap();
    let stack = world.client.stack().clone();
    world.client_runs(async move {
        let stream = stack.connect(server_at(80)).await.unwrap();
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap(), 0);
    });
    assert!(matches!(outcome.take(), Some(Err(SendFileError::Range { len: 10, .. }))));
}

#[test]
fn a_closed_window_pins_the_read_ahead_and_no_more() {
    let mut world = World::new();
    let file = File::in_memory(pattern(4_000_000, 4));
    let listener = world.server.stack().listen(server_at(80), 64).unwrap();
    world
        .server
        .stack()
        .spawn(async move {
            let (stream, _) = listener.accept().await;
            let _ = stream.send_file(&file, 0..file.len()).await;
        })
        .unwrap();
    let stack = world.client.stack().clone();
    let server = world.server.stack().clone();
    let pinned = world.client_runs(async move {
        let stream = stack.connect(server_at(80)).await.unwrap();
        // Long enough for the client's buffer to fill and the window to close.
        stack.sleep(Duration::from_secs(5)).await;
        let stats = server.arena_stats();
        stream.abort();
        stats.blocks.0 - stats.blocks.1
    });
    // Two of read-ahead, and what straddles the edge of the window.
    assert!((1..=4).contains(&pinned), "{pinned}");
}

#[test]
fn shutting_down_waits_for_the_file() {
    let mut world = World::new();
    let data = pattern(500_000, 4);
    let file = File::in_memory(data.clone());
    let listener = world.server.stack().listen(server_at(80), 64).unwrap();
    let server = world.server.stack().clone();
    world
        .server
        .stack()
        .spawn(async move {
            let (stream, _) = listener.accept().await;
            // The future is dropped; the file goes on, and the end comes after it.
            let sending = stream.send_file(&file, 0..file.len());
            assert!(server.timeout(Duration::ZERO, sending).await.is_none());
            stream.shutdown();
            server.sleep(Duration::from_secs(10)).await;
        })
        .unwrap();
    let stack = world.client.stack().clone();
    let got = world.client_runs(async move {
        let stream = stack.connect(server_at(80)).await.unwrap();
        let mut got = Vec::new();
        while let Some(buf) = stream.read_buf().await.unwrap() {
            got.extend_from_slice(&buf);
        }
        got
    });
    assert!(got == data, "{} of {}", got.len(), data.len());
}

#[test]
fn a_connection_that_is_gone_takes_no_file() {
    let mut world = World::new();
    let listener = world.server.stack().listen(server_at(80), 64).unwrap();
    let server = world.server.stack().clone();
    let outcome = world
        .server
        .stack()
        .spawn(async move {
            let (stream, _) = listener.accept().await;
            server.sleep(Duration::from_secs(1)).await;
            let file = File::in_memory(vec![1; 100]);
            let after_reset = stream.send_file(&file, 0..100).await;
            (after_reset, listener)
        })
        .unwrap();
    let stack = world.client.stack().clone();
    world.client_runs(async move {
        let stream = stack.connect(server_at(80)).await.unwrap();
        stack.sleep(Duration::from_millis(10)).await;
        stream.abort();
    });
    let got = world.output_of(&outcome);
    assert!(matches!(got.0, Err(SendFileError::Connection(_))));
}
