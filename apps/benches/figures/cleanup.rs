//! What must not be left behind: namespaces, processes, directories. Each has a guard; an interrupt
//! cleans up all that is alive.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Namespace(String),
    Process(u32),
    Dir(PathBuf),
    /// How many huge pages there were before.
    HugePages(u64),
}

static ALIVE: Mutex<Vec<Item>> = Mutex::new(Vec::new());

fn register(item: Item) {
    ALIVE.lock().unwrap_or_else(PoisonError::into_inner).push(item);
}

fn forget(item: &Item) {
    ALIVE.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| other != item);
}

fn remove(item: &Item) {
    match item {
        Item::Namespace(name) => {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
        Item::Process(id) => signal(*id, Signal::KILL),
        Item::Dir(path) => {
            let _ = std::fs::remove_dir_all(path);
        }
        Item::HugePages(before) => {
            let _ = std::fs::write(HUGE_PAGES, before.to_string());
        }
    }
}

fn signal(id: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// From now on Ctrl-C and SIGTERM clean up before they end the process.
pub fn on_interrupt() {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
    std::thread::spawn(move || {
        if signals.forever().next().is_none() {
            return;
        }
        let mut items = ALIVE.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Processes before the namespaces and directories that they use.
        items.sort_by_key(|item| !matches!(item, Item::Process(_)));
        items.iter().for_each(remove);
        std::process::exit(130);
    });
}

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

/// Huge pages for as long as the figures are measured, as an operator would reserve them: 2 GiB if
/// a quarter of the free memory is that much.
pub struct HugePages {
    before: u64,
    /// How many there are now.
    pub count: u64,
}

impl HugePages {
    /// `None` if they cannot be had: the machine has too little memory, or this is not root.
    pub fn reserve() -> Option<Self> {
        const PAGES: u64 = 1024;
        let read = || std::fs::read_to_string(HUGE_PAGES).ok()?.trim().parse::<u64>().ok();
        let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = memory.lines().find(|line| line.starts_with("MemAvailable:"))?;
        let available_kb: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        let before = read()?;
        if available_kb < 4 * PAGES * 2048 {
            return None;
        }
        register(Item::HugePages(before));
        let mut reserved = Self { before, count: before };
        std::fs::write(HUGE_PAGES, before.max(PAGES).to_string()).ok()?;
        reserved.count = read()?;
        Some(reserved)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let item = Item::HugePages(self.before);
        remove(&item);
        forget(&item);
    }
}

/// A network namespace.
pub struct Namespace(String);

impl Namespace {
    /// Makes one whose name nobody else has, with its loopback up.
    pub fn new(suffix: &str) -> Result<Self, String> {
        let name = format!("msbench{}{suffix}", std::process::id());
        register(Item::Namespace(name.clone()));
        let namespace = Self(name);
        run("ip", &["netns", "add", &namespace.0])?;
        namespace.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Runs a command inside and waits for it.
    pub fn run(&self, command: &[&str]) -> Result<String, String> {
        run("ip", &[&["netns", "exec", &self.0], command].concat())
    }

    /// A command that will run inside, on a given CPU.
    pub fn command(&self, cpu: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, "taskset", "-c", &cpu.to_string()]).arg(program);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let item = Item::Namespace(self.0.clone());
        remove(&item);
        forget(&item);
    }
}

/// Runs a command and gives what it printed, or one line of why not.
pub fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| format!("cannot run {program} ({error})"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let why = text.lines().last().unwrap_or("failed");
    Err(format!("{program} {}: {why}", args.join(" ")))
}

/// A process of ours.
pub struct Process {
    child: Child,
    what: &'static str,
    log: PathBuf,
}

impl Process {
    /// Starts one whose output goes to a file in `dir`.
    pub fn start(what: &'static str, dir: &Path, mut command: Command) -> Result<Self, String> {
        let log = dir.join(format!("{what}.log"));
        let file = std::fs::File::create(&log).map_err(|error| error.to_string())?;
        let other = file.try_clone().map_err(|error| error.to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(other)
            .spawn()
            .map_err(|error| format!("cannot start {what} ({error})"))?;
        register(Item::Process(child.id()));
        Ok(Self { child, what, log })
    }

    /// Nothing if it runs, else why it ended.
    pub fn check(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            _ => {
                let text = std::fs::read_to_string(&self.log).unwrap_or_default();
                let why = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("");
                Err(format!("{} ended: {why}", self.what))
            }
        }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end and waits until it has; returns all that it printed.
    pub fn end(mut self) -> Result<String, String> {
        signal(self.child.id(), Signal::INT);
        self.child.wait().map_err(|error| error.to_string())?;
        std::fs::read_to_string(&self.log).map_err(|error| error.to_string())
    }

    /// Stops it where it stands, so that it takes nothing from what is measured.
    pub fn pause(&self) {
        signal(self.child.id(), Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        signal(self.child.id(), Signal::CONT);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.resume();
        signal(self.child.id(), Signal::INT);
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        forget(&Item::Process(self.child.id()));
    }
}

/// A directory for what a figure needs.
pub struct Dir(tempfile::TempDir);

impl Dir {
    /// An empty one.
    pub fn new() -> std::io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("millstream-bench-").tempdir()?;
        register(Item::Dir(dir.path().to_owned()));
        Ok(Self(dir))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        forget(&Item::Dir(self.0.path().to_owned()));
    }
}
