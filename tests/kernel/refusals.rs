//! What cannot be done is refused in one sentence, before anything is touched.

use std::path::Path;

use millstream_tests::{
    Finished, Lab, Namespace, Process, Server, Site, millstream_binary, project_file, serve,
};

/// The program fails with 2 on what the user wrote, with 1 on what the machine would not have.
const USAGE: i32 = 2;
const RUNTIME: i32 = 1;

fn on_tap(ns: &Namespace<'_>, root: &Path, keys: &[&str]) -> Finished {
    Process::start(&mut serve(ns, root, "tap.toml", keys)).finish()
}

fn with_config(ns: &Namespace<'_>, root: &Path, config: &Path) -> Finished {
    let mut command = ns.command(millstream_binary());
    Process::start(command.arg("serve").arg("--config").arg(config).arg("--root").arg(root))
        .finish()
}

#[test]
fn an_unknown_key_is_named_with_the_nearest() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let text = std::fs::read_to_string(project_file("config/tap.toml")).expect("the profile");
    let misspelt = lab.folder().join("misspelt.toml");
    for (right, wrong) in [("driver =", "drivr ="), ("[ipv4]", "[ip4]")] {
        assert!(text.contains(right));
        std::fs::write(&misspelt, text.replacen(right, wrong, 1)).expect("a file");
        let words = [wrong, right].map(|name| name.trim_matches(['[', ']', ' ', '=']));
        with_config(&ns, site.root(), &misspelt)
            .assert_refusal(USAGE, &[words[0], words[1], "misspelt.toml"]);
    }
    on_tap(&ns, site.root(), &["memory.huge_page=try"])
        .assert_refusal(USAGE, &["huge_page", "huge_pages"]);
}

#[test]
fn a_config_that_is_missing_or_no_toml_is_named() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let path = lab.folder().join("mine.toml");
    with_config(&ns, site.root(), &path).assert_refusal(USAGE, &["mine.toml"]);
    std::fs::write(&path, "address = = 3\n").expect("a file");
    with_config(&ns, site.root(), &path).assert_refusal(USAGE, &["mine.toml"]);
}

#[test]
fn a_root_that_is_no_directory_is_named() {
    let lab = Lab::new();
    let ns = lab.namespace();
    on_tap(&ns, &lab.folder().join("nowhere"), &[]).assert_refusal(USAGE, &["nowhere"]);
    std::fs::write(lab.folder().join("plain"), "").expect("a file");
    on_tap(&ns, &lab.folder().join("plain"), &[]).assert_refusal(USAGE, &["plain"]);
}

#[test]
fn an_interface_that_is_taken_is_named() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let bytes = site.fill("file", 100);
    let server = Server::on_tap(&ns, site.root());
    on_tap(&ns, site.root(), &[]).assert_refusal(RUNTIME, &["dtap0"]);
    // The first one lost nothing.
    assert_eq!(ns.curl(&server.at("file"), &[]), (200, bytes));
    server.stop();
}

#[test]
fn too_little_memory_is_said() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    // 256 GiB of blocks; more packet buffers than fit the memory that DPDK was given, which does not
    // grow without huge pages.
    let cases = [
        (["memory.blocks=16777216", "memory.huge_pages=never"], "memory.blocks"),
        (["link.mbufs=400000", "dpdk.huge_pages=never"], "mbufs"),
    ];
    for (keys, word) in cases {
        on_tap(&ns, site.root(), &keys).assert_refusal(RUNTIME, &["memory", word]);
    }
}

#[test]
fn required_huge_pages_are_used_or_said_to_be_missing() {
    let info = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let free = info.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    let free: u64 = free.and_then(|value| value.trim().parse().ok()).unwrap_or(0);
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let keys = ["memory.huge_pages=require", "memory.frames=1024", "memory.blocks=128"];
    if free < 8 {
        on_tap(&ns, site.root(), &keys).assert_refusal(RUNTIME, &["huge pages"]);
    } else {
        let bytes = site.fill("file", 100_000);
        let server = Server::on_tap_with(&ns, site.root(), &keys);
        assert!(ns.curl(&server.at("file"), &[]) == (200, bytes));
        server.stop();
    }
}

#[test]
fn without_root_it_says_what_is_needed() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    // Readable for the user nobody, wherever the project lies.
    let program = lab.folder().join("millstream");
    std::fs::copy(millstream_binary(), &program).expect("a copy");
    let config = lab.folder().join("tap.toml");
    std::fs::copy(project_file("config/tap.toml"), &config).expect("a copy");
    ns.must("chmod", &["-R", "a+rX", &lab.folder().display().to_string()]);
    let mut command = ns.command("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(&program);
    command.arg("serve").arg("--config").arg(&config).arg("--root").arg(site.root());
    Process::start(&mut command).finish().assert_refusal(RUNTIME, &["root"]);
}

#[test]
fn wrong_arguments_are_explained() {
    let lab = Lab::new();
    let ns = lab.namespace();
    for args in
        [&["serve", "--rot", "/"][..], &["serv"], &["bench", "http", "--url", "ftp://198.18.0.2/"]]
    {
        let finished = Process::start(ns.command(millstream_binary()).args(args)).finish();
        assert_eq!(finished.status.code(), Some(2), "{args:?}: {finished}");
        assert!(!finished.stderr.is_empty() && !finished.stderr.contains("panicked"), "{finished}");
    }
}
