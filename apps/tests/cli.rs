//! The program as a user runs it: what it says, and with which code it ends. Its links are `null`
//! here, which touches no network.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_millstream");

fn profile(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "config", name].iter().collect()
}

/// `serve` of a folder that exists, with a profile and overrides.
fn serve(name: &str, overrides: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("serve").arg("--config").arg(profile(name)).arg("--root").arg(std::env::temp_dir());
    command.args(overrides.iter().flat_map(|one| ["--set", one]));
    command
}

/// The one line that the program says before it ends with `code`.
fn complaint(output: Output, code: i32) -> String {
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    let line = text.strip_suffix('\n').unwrap_or_else(|| panic!("{text:?}"));
    assert!(!line.contains('\n'), "{text}");
    assert!(output.stdout.is_empty());
    line.strip_prefix("millstream: ").unwrap_or_else(|| panic!("{line}")).to_owned()
}

#[test]
fn version_and_help() {
    let output = Command::new(PROGRAM).arg("--version").output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("millstream {}\n", env!("CARGO_PKG_VERSION"))
    );
    let output = Command::new(PROGRAM).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in ["--config", "--root", "--source", "--listen", "--set", "SIGINT", "SIGHUP"] {
        assert!(help.contains(word), "{help}");
    }
    let output = Command::new(PROGRAM).arg("srve").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_missing_directory() {
    let mut command = Command::new(PROGRAM);
    command.arg("serve").arg("--config").arg(profile("null.toml")).args(["--root", "/no/such/dir"]);
    let line = complaint(command.output().unwrap(), 2);
    assert_eq!(line, "there is no directory `/no/such/dir`; make it or name another one");
}

#[test]
fn an_unknown_key() {
    let file = std::env::temp_dir().join(format!("millstream-cli-{}.toml", std::process::id()));
    std::fs::write(&file, "[link]\ndriver = \"null\"\n\n[http]\nprot = 80\n").unwrap();
    let mut command = Command::new(PROGRAM);
    let output = command.arg("serve").arg("--config").arg(&file).args(["--root", "/"]).output();
    std::fs::remove_file(&file).unwrap();
    let line = complaint(output.unwrap(), 2);
    assert_eq!(
        line,
        format!("{}:5: unknown key `prot` in [http]; did you mean `port`?", file.display())
    );
    let line = complaint(serve("null.toml", &["memory.frame=1"]).output().unwrap(), 2);
    assert!(line.ends_with("did you mean `frames`?"), "{line}");
}

#[test]
fn a_busy_interface_name() {
    // `lo` exists in every network namespace; it is looked up, not touched.
    let line = complaint(serve("tap.toml", &["link.iface=lo"]).output().unwrap(), 1);
    assert!(line.contains("a network interface named lo exists already"), "{line}");
}

#[test]
fn too_little_memory() {
    let many = ["memory.huge_pages=require", "memory.blocks=16777216"];
    let line = complaint(serve("null.toml", &many).output().unwrap(), 1);
    assert!(line.contains("not enough free huge pages: "), "{line}");
    let line = complaint(
        serve("null.toml", &["dpdk.huge_pages=require", "dpdk.memory_mb=2000000"])
            .output()
            .unwrap(),
        1,
    );
    assert!(line.contains("sysctl vm.nr_hugepages=1000000"), "{line}");
    // 256 GiB and 1 TiB: more than any machine has left that runs tests.
    for many in ["memory.blocks=16777216", "dpdk.memory_mb=1048576"] {
        let line = complaint(serve("null.toml", &[many]).output().unwrap(), 1);
        assert!(line.contains("MiB of memory are left"), "{line}");
    }
    for many in ["link.mbufs=4294967295", "dpdk.memory_mb=4294967295", "dpdk.memory_mb=0"] {
        let (key, _) = many.split_once('=').unwrap();
        let line = complaint(serve("null.toml", &[many]).output().unwrap(), 2);
        assert!(line.contains(&format!("{key} is ")), "{line}");
    }
}

#[test]
fn no_root() {
    // Somewhere where another user finds it.
    let folder = std::env::temp_dir().join(format!("millstream-cli-{}-nobody", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.join("millstream");
    std::fs::copy(PROGRAM, &program).unwrap();
    let config = folder.join("tap.toml");
    std::fs::copy(profile("tap.toml"), &config).unwrap();
    let mut command = Command::new(&program);
    command.arg("serve").arg("--config").arg(&config).arg("--root").arg(&folder).current_dir("/");
    // Whoever runs the test without being root is not root already.
    let output = match command.uid(65534).gid(65534).output() {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Command::new(&program)
                .arg("serve")
                .arg("--config")
                .arg(&config)
                .arg("--root")
                .arg(&folder)
                .output()
        }
        other => other,
    };
    std::fs::remove_dir_all(&folder).unwrap();
    let line = complaint(output.unwrap(), 1);
    assert!(line.contains("no permission to make a tap interface: run as root"), "{line}");
}

/// A child; killed when dropped.
struct Running(Child);

impl Running {
    fn interrupt(&self) {
        kill_process(Pid::from_child(&self.0), Signal::INT).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that has said that it is ready, what it will still say, and the line that it said.
fn running(overrides: &[&str]) -> (Running, BufReader<ChildStdout>, String) {
    let mut command = serve("null.toml", overrides);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut child = Running(child);
    let mut stdout = BufReader::new(child.0.stdout.take().unwrap());
    let mut ready = String::new();
    stdout.read_line(&mut ready).unwrap();
    assert!(ready.starts_with("serving "), "{ready}");
    (child, stdout, ready)
}

#[test]
fn serving_ends_in_good_order_on_sigint() {
    let (mut child, mut stdout, ready) = running(&["http.port=8080"]);
    assert!(ready.contains("on http://198.18.0.2:8080 | net_null | "), "{ready}");
    child.interrupt();
    let status = child.0.wait().unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(status.code(), Some(0), "{rest}");
    assert!(rest.starts_with("requests "), "{rest}");
    assert!(!rest.contains("drop_"), "{rest}");
}

#[test]
fn a_closed_standard_output_is_no_fault() {
    let (mut child, stdout, _) = running(&[]);
    drop(stdout);
    child.interrupt();
    let status = child.0.wait().unwrap();
    let mut stderr = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_pinned_shard_keeps_its_workers_off_its_cpu() {
    let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let all = cpus_of(&own);
    let first = all.split([',', '-']).next().unwrap().to_owned();
    let (child, ..) = running(&[&format!("shard.cpu={first}"), "disk.queue=pread"]);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.0.id())).unwrap();
    let (mut shards, mut workers) = (0, 0);
    for task in tasks.map(|task| task.unwrap()) {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap();
        if task.file_name().to_str() == Some(&child.0.id().to_string()) {
            shards += 1;
            assert_eq!(cpus_of(&status), first);
        } else if status.starts_with("Name:\tmillstream-disk") {
            workers += 1;
            assert_eq!(cpus_of(&status), all, "{status}");
        }
    }
    assert_eq!(shards, 1);
    assert!(workers > 0, "the workers' name has changed");
}

/// The CPUs on which a thread may run, from its status in /proc.
fn cpus_of(status: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap().trim().to_owned()
}

#[test]
fn a_cpu_that_is_not_there() {
    let line = complaint(serve("null.toml", &["shard.cpu=1023"]).output().unwrap(), 1);
    assert!(line.starts_with("shard.cpu is 1023, but this process may run on "), "{line}");
}

#[test]
fn a_card_is_named_by_its_address() {
    for bad in ["net_null0", "0000:01:00", "0000:01:20.0", "0000:01:00.0,x=1"] {
        let overrides = ["link.driver=pci", &format!("link.pci={bad}")];
        let line = complaint(serve("null.toml", &overrides).output().unwrap(), 2);
        assert!(line.contains(&format!("`{bad}` is no PCI address")), "{line}");
    }
}

#[test]
fn wrong_arguments_of_the_benchmark() {
    for args in [
        &["--url", "ftp://198.18.0.2/"][..],
        &["--url", "http://198.18.0.2/", "--url", "http://198.18.0.3/"],
        &["--url", "http://198.18.0.2/", "--paths", "/no/such/file"],
        &["--url", "http://198.18.0.2/", "--via", "stack", "--config", "/no/such/file"],
    ] {
        let output = Command::new(PROGRAM).args(["bench", "http"]).args(args).output();
        complaint(output.unwrap(), 2);
    }
}

#[test]
fn the_doctor_says_how_to_mend() {
    let output = Command::new(PROGRAM).arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    for what in [
        "user",
        "kernel",
        "cores",
        "processor",
        "huge pages",
        "copying",
        "DPDK",
        "drivers",
        "tap",
        "cards",
        "disk",
        "open files",
        "locked memory",
    ] {
        let line =
            text.lines().find(|line| line.get(6..).is_some_and(|rest| rest.starts_with(what)));
        let line = line.unwrap_or_else(|| panic!("no line on {what}: {text}"));
        assert!(
            line.starts_with("ok    ") || (line.starts_with("warn  ") && line.contains("; ")),
            "{line}"
        );
    }
}

#[test]
fn waiting_for_each_frame_needs_a_link_that_interrupts() {
    let mut command = serve("null.toml", &["shard.polling=interrupt"]);
    let line = complaint(command.output().unwrap(), 2);
    assert!(
        line.contains("shard.polling is \"interrupt\", but net_null cannot interrupt"),
        "{line}"
    );
}

#[test]
fn bench_triggers_prints_its_tables() {
    let json =
        std::env::temp_dir().join(format!("millstream-triggers-{}.json", std::process::id()));
    let output = Command::new(PROGRAM)
        .args(["bench", "triggers", "--load", "http", "--duration", "0.2", "--json"])
        .arg(&json)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for word in ["points/s", "application task", "how late events fire"] {
        assert!(text.contains(word), "{text}");
    }
    let rows: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    std::fs::remove_file(&json).unwrap();
    assert_eq!(rows[0]["load"], "http");
    assert!(rows[0]["rate"].as_f64().unwrap() > 0.0, "requests were answered");
    let shares = rows[0]["source_percent"].as_array().unwrap();
    let sum: f64 = shares.iter().map(|share| share[1].as_f64().unwrap()).sum();
    assert!((sum - 100.0).abs() < 1e-6, "{sum}");
}

#[test]
fn what_cannot_be_packed_or_served_as_an_image() {
    let run = |arguments: &[&str]| Command::new(PROGRAM).args(arguments).output().unwrap();
    let line = complaint(run(&["image", "/no/such/dir", "/tmp/x"]), 2);
    assert!(line.starts_with("cannot read `/no/such/dir`"), "{line}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let line = complaint(run(&["image", path, "/no/such/dir/image"]), 1);
    assert!(line.starts_with("cannot write `/no/such/dir/image`"), "{line}");
    let profile = profile("null.toml");
    let config = ["serve", "--config", profile.to_str().unwrap()];
    let with = |more: &[&str]| run(&[&config[..], more].concat());
    let file = folder.path().join("file");
    std::fs::write(&file, "no image").unwrap();
    let source = format!("image:{}", file.display());
    let line = complaint(with(&["--source", &source]), 2);
    assert!(line.contains("it is no EROFS image"), "{line}");
    let line = complaint(with(&["--source", "image:/no/such/file"]), 2);
    assert!(line.contains("there is no such file"), "{line}");
    for wrong in [&["--source", "/srv"][..], &[], &["--source", "dir:/", "--root", "/"]] {
        assert_eq!(with(wrong).status.code(), Some(2));
    }
}

#[test]
fn the_splice_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, vec![7; 2 << 20]).unwrap();
    let run = |file: &std::path::Path, more: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(["bench", "splice", "--duration", "0.2", "--file"]).arg(file);
        command.args(more).output().unwrap()
    };
    for more in [&[][..], &["--no-tso", "--request", "300000", "--connections", "3"]] {
        let output = run(&file, more);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        for row in ["null disk, spliced", "file, spliced", "file, read and send", "kernel sendfile"]
        {
            let line = text.lines().find(|line| line.starts_with(row)).unwrap();
            let speed: f64 = line[row.len()..].split_whitespace().next().unwrap().parse().unwrap();
            assert!(speed > 0.0, "{line}");
        }
    }
    std::fs::write(&file, "short").unwrap();
    let line = complaint(run(&file, &[]), 2);
    assert!(line.contains("give a file of a MiB at least"), "{line}");
    let line = complaint(run("/no/such/file".as_ref(), &[]), 2);
    assert!(line.contains("cannot read `/no/such/file`"), "{line}");
}
