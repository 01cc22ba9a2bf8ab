//! Images: packed by the program, served by it, and exchanged under its feet.

use std::path::Path;
use std::process::{Command, Stdio};

use millstream_tests::{
    Lab, Process, RawConnection, Server, Signal, Site, content, millstream_binary,
};

/// `millstream image DIR FILE`.
fn pack(site: &Site, image: &Path) {
    let mut command = Command::new(millstream_binary());
    let finished = Process::start(command.arg("image").args([site.root(), image])).finish();
    assert!(finished.success(), "{finished}");
    assert!(finished.stdout.contains("UUID"), "{finished}");
}

#[test]
fn an_image_is_served_and_another_takes_its_place_while_a_download_runs() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let old = site.fill("film", 16 << 20);
    site.put("deep/page.html", b"old page");
    let image = lab.folder().join("site.image");
    pack(&site, &image);
    let server = Server::on_tap_source(&ns, &format!("image:{}", image.display()));
    for _ in 0..3 {
        assert_eq!(ns.curl(&server.at("deep/page.html"), &[]), (200, b"old page".to_vec()));
    }
    let new = content(7, 16 << 20);
    site.put("film", &new);
    site.put("deep/page.html", b"new page");
    let address = server.address;
    let wait_for_switch = || {
        server.process().wait_line(|line| line.starts_with("serving anew").then_some(()));
    };
    let body = ns.enter(|| {
        let mut connection = RawConnection::open(address);
        connection.send("GET /film HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(connection.head().status, 200);
        let mut body = connection.body(1 << 20);
        // The name is watched: nothing more is to be done.
        pack(&site, &image);
        wait_for_switch();
        body.extend(connection.body(15 << 20));
        // The same connection meets the new image.
        connection.send("GET /film HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(connection.response().body == new);
        body
    });
    assert!(body == old, "what was being sent came from the old image");
    assert_eq!(ns.curl(&server.at("deep/page.html"), &[]), (200, b"new page".to_vec()));

    // One that cannot be served changes nothing.
    std::fs::write(lab.folder().join("bad"), b"no image").expect("a file");
    std::fs::rename(lab.folder().join("bad"), &image).expect("a rename");
    server.process().wait_line(|line| {
        let word = line.contains("it is no EROFS image") && line.contains("served on");
        word.then_some(())
    });
    assert_eq!(ns.curl(&server.at("deep/page.html"), &[]), (200, b"new page".to_vec()));
    server.stop();
}

#[test]
fn a_directory_is_opened_again_when_asked() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    site.put("page", b"old");
    let server = Server::on_tap(&ns, site.root());
    assert_eq!(ns.curl(&server.at("page"), &[]), (200, b"old".to_vec()));
    std::fs::rename(site.root(), lab.folder().join("before")).expect("a rename");
    site.put("page", b"new");
    server.process().signal(Signal::HUP);
    server.process().wait_line(|line| line.starts_with("serving anew").then_some(()));
    assert_eq!(ns.curl(&server.at("page"), &[]), (200, b"new".to_vec()));
    server.stop();
}

/// A loop device over a file, detached at the end.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(Self(name))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).output();
    }
}

#[test]
fn a_device_is_written_only_when_asked_twice() {
    let lab = Lab::new();
    let site = Site::new(&lab);
    let bytes = site.fill("file", 100_000);
    let file = lab.folder().join("device");
    let length = std::fs::File::create(&file).and_then(|file| file.set_len(4 << 20));
    length.expect("a file");
    let Some(device) = Loop::new(&file) else {
        eprintln!("not run: no loop device is to be had");
        return;
    };
    let untouched = || std::fs::read(&file).expect("a file").iter().all(|&byte| byte == 0);
    let image = |option: &[&str]| {
        let mut command = Command::new(millstream_binary());
        command.arg("image").arg(site.root()).arg(&device.0).args(option);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let finished = Process::start(&mut image(&[])).finish();
    finished.assert_refusal(2, &["everything on it would be lost", "--overwrite-device"]);
    assert!(untouched());
    let answer = |typed: &str| {
        let mut child = image(&["--overwrite-device"]).spawn().expect("a child");
        let mut stdin = child.stdin.take().expect("it is piped");
        std::io::Write::write_all(&mut stdin, typed.as_bytes()).expect("a pipe");
        drop(stdin);
        child.wait_with_output().expect("its end")
    };
    for typed in ["", "yes\n", "/dev/loop\n"] {
        let output = answer(typed);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("nothing was written"));
        assert!(untouched(), "{typed:?}");
    }
    let output = answer(&format!("{}\n", device.0));
    assert!(output.status.success(), "{output:?}");
    // And a device is served like a file.
    let ns = lab.namespace();
    let server = Server::on_tap_source(&ns, &format!("image:{}", device.0));
    assert!(ns.curl(&server.at("file"), &[]) == (200, bytes));
    server.stop();
}
