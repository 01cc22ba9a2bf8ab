//! Many connections at a time, and one after another.

use millstream_tests::{Lab, Process, Server, Site};

#[test]
fn parallel_downloads_do_not_mix() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let names: Vec<_> = (0..8).map(|number| format!("file{number}")).collect();
    let files: Vec<_> =
        (0..8).map(|number| site.fill(&names[number], (1 << 20) + number)).collect();
    let server = Server::on_tap(&ns, site.root());
    let downloads: Vec<_> = names
        .iter()
        .map(|name| {
            let output = lab.folder().join(name);
            let mut curl = ns.command("curl");
            curl.args(["--silent", "--show-error", "--fail", "--max-time", "60", "--output"]);
            (Process::start(curl.arg(&output).arg(server.at(name))), output)
        })
        .collect();
    for ((download, output), bytes) in downloads.into_iter().zip(&files) {
        let finished = download.finish();
        assert!(finished.success(), "{finished}");
        assert!(std::fs::read(output).expect("it was fetched") == *bytes);
    }
    server.stop();
}

#[test]
fn connections_come_and_go() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    site.fill("file", 6_144);
    let server = Server::on_tap(&ns, site.root());
    // curl makes a connection for each of the 200 because the server is asked to close.
    let url = server.at("file?[1-200]");
    let args =
        ["--silent", "--show-error", "--fail", "--max-time", "80", "--header", "Connection: close"];
    let report =
        ["--write-out", "%{num_connects} %{size_download}\n", "--output", "/dev/null", &url];
    let finished = ns.must("curl", &[&args[..], &report[..]].concat());
    let lines: Vec<_> = finished.stdout.lines().collect();
    assert_eq!(lines, vec!["1 6144"; 200]);
    server.stop();
}

#[test]
fn wrk_sees_no_socket_error() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    site.fill("file", 6_144);
    let server = Server::on_tap(&ns, site.root());
    // wrk counts answers that take longer as errors; its own 2 s would be a matter of speed.
    let patient = &["--timeout", "60s"][..];
    for extra in [&[][..], &["--header", "Connection: close"]] {
        let url = server.at("file");
        let args = [
            &["--threads", "1", "--connections", "64", "--duration", "2s"],
            patient,
            extra,
            &[&*url],
        ];
        let finished = ns.must("wrk", &args.concat());
        let requests = finished.stdout.lines().find_map(|line| {
            line.trim().split_once(" requests in ").and_then(|(count, _)| count.parse::<u64>().ok())
        });
        assert!(requests.is_some_and(|count| count > 0), "{finished}");
        assert!(!finished.stdout.contains("Socket errors"), "{finished}");
        assert!(!finished.stdout.contains("Non-2xx"), "{finished}");
    }
    server.stop();
}
