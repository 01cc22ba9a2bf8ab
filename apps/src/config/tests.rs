use std::collections::BTreeSet;
use std::path::PathBuf;

use toml::{Table, Value};

use super::*;
use millstream::core::{Quota, TimerSource};

fn profiles() -> Vec<(PathBuf, String)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../config");
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
        .collect();
    found.sort();
    found
}

/// The profile with every documented key switched on, and the keys that were off.
fn uncommented(text: &str) -> (String, Vec<(String, String)>) {
    let mut section = String::new();
    let mut off = Vec::new();
    let lines = text.lines().map(|line| {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        }
        let assignment = line.strip_prefix("# ").filter(|rest| {
            let key = rest.split_once(" = ").map(|(key, _)| key);
            key.is_some_and(|key| {
                key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            })
        });
        match assignment {
            Some(assignment) => {
                let key = assignment.split(' ').next().unwrap().to_owned();
                off.push((section.clone(), key));
                assignment
            }
            None => line,
        }
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    (text, off)
}

/// The keys that a section takes, by its own word.
fn known_keys(section: &str) -> BTreeSet<String> {
    let error = toml::from_str::<Config>(&format!("[{section}]\nno_such_key = 1")).unwrap_err();
    error.message().split('`').skip(1).step_by(2).skip(1).map(str::to_owned).collect()
}

fn get<'a>(table: &'a Table, section: &str, key: &str) -> Option<&'a Value> {
    table.get(section)?.as_table()?.get(key)
}

#[test]
fn each_profile_documents_every_key_with_its_default() {
    let defaults = Table::try_from(Config::default()).unwrap();
    let all: Vec<(String, BTreeSet<String>)> =
        defaults.keys().map(|section| (section.clone(), known_keys(section))).collect();
    let profiles = profiles();
    assert_eq!(profiles.len(), 8);
    for (path, text) in profiles {
        let name = path.display();
        check::parse(&text, "profile").unwrap().validated(&path).unwrap().device().unwrap();
        let (full, off) = uncommented(&text);
        check::parse(&full, "profile").unwrap_or_else(|error| panic!("{name}: {error}"));
        let full: Table = toml::from_str(&full).unwrap();
        for (section, keys) in &all {
            let documented: BTreeSet<String> =
                full[section].as_table().unwrap().keys().cloned().collect();
            assert_eq!(&documented, keys, "{name} [{section}]");
        }
        for (section, key) in off {
            // A key without a default is shown by an example.
            if let Some(default) = get(&defaults, &section, &key) {
                assert_eq!(get(&full, &section, &key), Some(default), "{name} {section}.{key}");
            }
        }
    }
}

#[test]
fn every_driver_has_a_profile() {
    let drivers: BTreeSet<_> = profiles()
        .iter()
        .map(|(_, text)| check::parse(text, "profile").unwrap().link.driver.name())
        .collect();
    let known = ["af_packet", "af_xdp", "memif", "null", "pcap", "pci", "ring", "tap"];
    assert_eq!(drivers.into_iter().collect::<Vec<_>>(), known);
}

fn error(text: &str) -> String {
    let error = check::parse(text, "my.toml").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let error = error.to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest() {
    assert_eq!(
        error("[link]\ndriver = \"tap\"\nifcae = \"t0\"\n"),
        "my.toml:3: unknown key `ifcae` in [link]; did you mean `iface`?"
    );
    assert_eq!(error("\n[htp]\nport = 1\n"), "my.toml:2: unknown key `htp`; did you mean `http`?");
    assert_eq!(
        error("[link]\ndriver = \"tapp\"\n"),
        "my.toml:2: unknown value `tapp`; did you mean `tap`?"
    );
    assert_eq!(
        error("[tcp]\ncongestion = \"cubik\"\n"),
        "my.toml:2: unknown value `cubik`; did you mean `cubic`?"
    );
    let far = error("[disk]\nzzz = 1\n");
    let known = "my.toml:2: unknown key `zzz` in [disk]; known are queue, depth, ";
    assert!(far.starts_with(known), "{far}");
}

#[test]
fn other_mistakes_have_their_line_too() {
    assert!(
        error("[ipv4]\naddress = \"198.18.0.2\"\n")
            .starts_with("my.toml:2: `198.18.0.2` is no address")
    );
    assert!(error("[http]\nport = 70000\n").starts_with("my.toml:2: "));
    assert!(error("[http\n").starts_with("my.toml:1: "));
    assert!(error("[http]\nport = \"x\"\n").contains("invalid type"));
}

#[test]
fn overrides_come_last_and_are_checked() {
    let text = "[link]\niface = \"a\"\n";
    let base = check::parse(text, "p").unwrap();
    let set = |overrides: &[&str]| {
        let overrides: Vec<_> = overrides.iter().map(|&one| one.to_owned()).collect();
        check::with_overrides(base.clone(), text, &overrides)
    };
    let config = set(&["link.iface=b", "http.port = 8080", "ipv4.address=198.18.0.9/16"]).unwrap();
    assert_eq!(config.link.iface.as_deref(), Some("b"));
    assert_eq!(config.http.port, 8080);
    assert_eq!(config.ipv4.address.to_string(), "198.18.0.9/16");
    let error = set(&["http.prt=1"]).unwrap_err().to_string();
    assert_eq!(error, "--set http.prt=1: unknown key `prt` in [http]; did you mean `port`?");
    assert!(set(&["iface=b"]).unwrap_err().to_string().contains("section.key=value"));
}

#[test]
fn values_out_of_bounds_are_refused() {
    let refused = |text: &str| {
        let config = check::parse(text, "p").unwrap();
        config.validated(Path::new("p")).unwrap_err().to_string()
    };
    for key in ["slices", "connection_packets", "socket_packets"] {
        let error = refused(&format!("[limits]\n{key} = 0\n"));
        assert!(error.contains(&format!("limits.{key} is 0")), "{error}");
    }
    assert!(refused("[disk]\ndepth = 0\n").contains("disk.depth is 0"));
    assert!(refused("[tcp]\nsend_buffer_bytes = 1\n").contains("tcp.send_buffer_bytes"));
    assert!(refused("[limits]\ntasks = 100\n").contains("raise limits.tasks"));
    assert!(refused("[shard]\nbackup_hz = 20000\n").contains("shard.backup_hz is 20000"));
    for quota in ["0", "33", "-1", "\"atuo\"", "true"] {
        let error = error(&format!("[shard]\nquota = {quota}\n"));
        assert!(
            error.contains(&format!("the quota is {quota}; set it between 1 and 32")),
            "{error}"
        );
    }
}

#[test]
fn what_tcp_and_addresses_are_set_to_reaches_them() {
    use millstream::tcp::{Clocking, Ecn};
    let text = "[tcp]\necn = \"request\"\nclocking = \"rate\"\nrack = false\nrecv_buffer_max_bytes = 0\n\
        send_buffer_max_bytes = 8192\n[ipv6]\nslaac = true\n\
        stable_secret = \"000102030405060708090a0b0c0d0e0F\"\n";
    let config = check::parse(text, "p").unwrap().validated(Path::new("p")).unwrap();
    let shard = config.shard_config();
    assert_eq!(
        (shard.tcp.ecn, shard.tcp.clocking, shard.tcp.rack),
        (Ecn::Request, Clocking::Rate, false)
    );
    assert_eq!((shard.tcp.recv_buffer_max_bytes, shard.tcp.send_buffer_max_bytes), (0, 8192));
    let secret = std::array::from_fn(|at| at as u8);
    assert_eq!(shard.ipv6.unwrap().stable_secret, Some(secret));
    assert!(!format!("{config:?}").contains("0a0b"), "secrets are not shown");
    let wrong = error("[ipv6]\nstable_secret = \"123\"\n");
    assert!(wrong.contains("32 hexadecimal digits") && !wrong.contains("123"), "{wrong}");
    let alone = check::parse("[ipv6]\nstable_secret = \"00000000000000000000000000000000\"\n", "p");
    let alone = alone.unwrap().validated(Path::new("p")).unwrap_err().to_string();
    assert!(alone.contains("ipv6.slaac"), "{alone}");
    let much = check::parse("[tcp]\nrecv_buffer_max_bytes = 2000000000\n", "p").unwrap();
    let much = much.validated(Path::new("p")).unwrap_err().to_string();
    assert!(much.contains("tcp.recv_buffer_max_bytes"), "{much}");
}

#[test]
fn a_driver_without_what_it_needs_is_refused() {
    let config = check::parse("[link]\ndriver = \"memif\"\n", "p").unwrap();
    let error = config.device().unwrap_err().to_string();
    assert_eq!(error, "the driver \"memif\" needs link.socket; add it to the profile");
}

#[test]
fn a_missing_profile_is_a_sentence() {
    let error = Config::load(Path::new("/nowhere/x.toml"), &[]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().starts_with("cannot read the profile `/nowhere/x.toml`"), "{error}");
}

#[test]
fn congestion_controllers_have_the_names_that_the_stack_gives_them() {
    for algorithm in millstream::tcp::Algorithm::ALL {
        let text = format!("[tcp]\ncongestion = \"{algorithm}\"\n");
        let config = check::parse(&text, "profile").unwrap();
        assert_eq!(config.tcp.config().congestion, algorithm);
        assert_eq!(config.shard_config().tcp.congestion, algorithm);
    }
}

#[test]
fn polling_and_timers_reach_the_shard() {
    let of = |text: &str| check::parse(&format!("[shard]\n{text}\n"), "p").unwrap();
    let shard = |text: &str| of(text).shard_config();
    assert_eq!(shard("").polling, Polling::Spin);
    assert_eq!(shard("polling = \"quota\"").polling, Polling::Quota(Quota::Auto));
    let eight = shard("polling = \"quota\"\nquota = 8").polling;
    assert_eq!(eight, Polling::Quota(Quota::Frames(8)));
    assert_eq!(shard("polling = \"interrupt\"").polling, Polling::Interrupt);
    assert_eq!(shard("timers = \"signal\"").timers, TimerSource::Signal);
    assert!(shard("trigger_histogram = true").trace_triggers);
    let interrupts = |text: &str| of(text).port(Device::Ring).rx_interrupts;
    assert!(interrupts("") && !interrupts("idle = \"spin\""));
    assert!(interrupts("idle = \"spin\"\npolling = \"interrupt\""));
}
