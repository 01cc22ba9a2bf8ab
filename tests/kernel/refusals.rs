//! What cannot be done is refused in one sentence, before anything is touched.

use std::path::Path;

use millstream_tests::{
    Config, Finished, Lab, Namespace, Process, Server, Site, millstream_binary, project_file,
};

fn serve(ns: &Namespace<'_>, config: &Path, root: &Path) -> Finished {
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
    assert!(text.contains("huge_pages ="));
    std::fs::write(&misspelt, text.replace("huge_pages =", "hugepages =")).expect("a file");
    serve(&ns, &misspelt, site.root())
        .assert_refusal(2, &["hugepages", "huge_pages", "misspelt.toml"]);
}

#[test]
fn a_config_that_is_missing_or_no_toml_is_named() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let path = lab.folder().join("mine.toml");
    serve(&ns, &path, site.root()).assert_refusal(2, &["mine.toml"]);
    std::fs::write(&path, "address = = 3\n").expect("a file");
    serve(&ns, &path, site.root()).assert_refusal(2, &["mine.toml"]);
}

#[test]
fn a_root_that_is_no_directory_is_named() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let config = project_file("config/tap.toml");
    serve(&ns, &config, &lab.folder().join("nowhere")).assert_refusal(1, &["nowhere"]);
    std::fs::write(lab.folder().join("plain"), "").expect("a file");
    serve(&ns, &config, &lab.folder().join("plain")).assert_refusal(1, &["plain"]);
}

#[test]
fn an_interface_that_is_taken_is_named() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let bytes = site.fill("file", 100);
    let server = Server::on_tap(&ns, site.root());
    serve(&ns, &project_file("config/tap.toml"), site.root()).assert_refusal(1, &["dtap0"]);
    // The first one lost nothing.
    assert_eq!(ns.curl(&server.at("file"), &[]), (200, bytes));
    server.stop();
}

#[test]
fn too_little_memory_is_said() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let config = Config::from_profile("tap.toml").set("memory_mb", "1000000000").write(&lab);
    serve(&ns, &config, site.root()).assert_refusal(1, &["memory"]);
}

#[test]
fn required_huge_pages_that_are_missing_are_said() {
    let info = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let free = info.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    let free: u64 = free.and_then(|value| value.trim().parse().ok()).unwrap_or(0);
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let config = Config::from_profile("tap.toml").set("huge_pages", "\"require\"");
    if free == 0 {
        serve(&ns, &config.write(&lab), site.root()).assert_refusal(1, &["huge pages"]);
    } else {
        // A machine that has them gets them, and the line that says so.
        let bytes = site.fill("file", 100_000);
        let server = Server::on_tap_with(&ns, site.root(), &config.write(&lab));
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
    Process::start(&mut command).finish().assert_refusal(1, &["root"]);
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
