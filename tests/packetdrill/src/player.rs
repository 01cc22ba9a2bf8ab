//! Playing a script: events in their order, in virtual time.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use millstream_timer::Instant;

use crate::calls::{Answer, Pending};
use crate::flow::{Flow, Phase};
use crate::parse;
use crate::script::{Action, CallSpec, Event, EventTime, Script};
use crate::socket::{Outcome, Sockets};
use crate::world::Settings;
use crate::{assertion, info, shell};

/// The peer.
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The port that scripts bind, and connect to.
pub(crate) const PORT: u16 = 8080;
/// How long an expected packet is waited for beyond its time.
const PATIENCE_US: i64 = 2_000_000;
/// How long one is waited for that may come whenever it likes.
const PATIENCE_ANY_US: i64 = 3_600_000_000;

/// Why a script failed, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The line of the event.
    pub line: u32,
    /// What was wrong.
    pub message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for Failure {}

/// Plays the script in a file.
///
/// # Errors
/// What the stack did otherwise than the script says.
pub fn play_file(path: &Path) -> Result<(), Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure { line: 0, message: format!("{}: {error}", path.display()) })?;
    play(&text, path.parent().unwrap_or(Path::new(".")))
}

/// Plays a script. `folder` is where the files lie that it names.
///
/// # Errors
/// What the stack did otherwise than the script says.
pub fn play(text: &str, folder: &Path) -> Result<(), Failure> {
    let script = parse::script(text)
        .map_err(|error| Failure { line: error.line, message: error.message })?;
    let mut player = Player::new(&script, folder);
    if let Some(commands) = &script.init {
        player.run_commands(commands).map_err(|message| Failure { line: 1, message })?;
    }
    for event in &script.events {
        player.line = event.line;
        player.run(event).map_err(|message| Failure { line: player.line, message })?;
    }
    player.finish().map_err(|message| Failure { line: player.line, message })
}

/// A call of the script that waits.
struct Blocked {
    pending: Pending,
    spec: CallSpec,
    line: u32,
    /// When it began and is to end.
    start_us: i64,
    end_us: i64,
    kind: EventTime,
}

pub(crate) struct Player {
    pub sockets: Sockets,
    folder: PathBuf,
    tolerance_us: i64,
    tolerance_percent: f64,
    pub timestamp_tick_us: i64,
    pub flows: Vec<Flow>,
    /// The flow that packets belong to.
    pub current: Option<usize>,
    /// Descriptors by their numbers in the script.
    pub descriptors: HashMap<i64, i32>,
    pub next_remote_port: u16,
    line: u32,
    start: Option<Instant>,
    /// When the event before was to happen; and whether it was an inbound packet.
    last_us: Option<i64>,
    last_inbound: bool,
    /// When the event at hand is to happen, from and to.
    pub due: (i64, i64),
    blocked: Option<Blocked>,
}

impl Player {
    fn new(script: &Script, folder: &Path) -> Self {
        let number = |name: &str, default: f64| {
            script.option(name).and_then(|value| value.parse().ok()).unwrap_or(default)
        };
        Self {
            sockets: Sockets::new(Settings::default(), 3),
            folder: folder.to_owned(),
            tolerance_us: number("tolerance_usecs", 4000.0) as i64,
            tolerance_percent: number("tolerance_percent", 12.5),
            timestamp_tick_us: number("tcp_ts_tick_usecs", 0.0) as i64,
            flows: Vec::new(),
            current: None,
            descriptors: HashMap::new(),
            next_remote_port: 30_000,
            line: 1,
            start: None,
            last_us: None,
            last_inbound: false,
            due: (0, 0),
            blocked: None,
        }
    }

    /// The stack's address and the port that it binds.
    pub fn local(&mut self) -> SocketAddrV4 {
        SocketAddrV4::new(self.sockets.settings().address, PORT)
    }

    /// Microseconds since the first event.
    pub fn now_us(&mut self) -> i64 {
        let now = self.sockets.now();
        let start = *self.start.get_or_insert(now);
        now.micros_since(start) as i64
    }

    pub fn script_time(&self, moment: Instant) -> i64 {
        self.start.map_or(0, |start| moment.micros_since(start) as i64)
    }

    fn moment(&mut self, us: i64) -> Instant {
        let now = self.sockets.now();
        let start = *self.start.get_or_insert(now);
        start.plus_micros(us.max(0) as u64)
    }

    fn run_commands(&mut self, commands: &str) -> Result<(), String> {
        let folder = self.folder.clone();
        shell::run(&mut self.sockets, commands, &folder)
    }

    fn run(&mut self, event: &Event) -> Result<(), String> {
        let inbound = matches!(&event.action, Action::Packet(packet) if packet.inbound);
        let base = match self.last_us {
            Some(last) if inbound && self.last_inbound => last,
            _ => self.now_us(),
        };
        self.due = match event.time {
            EventTime::At(at) => (at, at),
            EventTime::After(span) => (base + span, base + span),
            EventTime::Any => (base, base),
            EventTime::Between(from, to) => (from, to),
            EventTime::AfterBetween(from, to) => (base + from, base + to),
        };
        let expects = matches!(&event.action, Action::Packet(packet) if !packet.inbound);
        if !expects {
            // What is expected is looked for at once: it may come too early.
            self.wait_until(self.due.0)?;
            let now_us = self.now_us();
            self.check_time(event.time, self.due, now_us, self.last_us, "the event")?;
        }
        match &event.action {
            Action::Packet(packet) if packet.inbound => self.inject(packet)?,
            Action::Packet(packet) => self.expect(packet, event.time)?,
            Action::Call(call) => self.call(call, event.time)?,
            Action::Command(commands) => self.run_commands(commands)?,
            Action::Code(code) => self.assert(code)?,
        }
        self.progress()?;
        self.last_us = Some(self.due.0);
        self.last_inbound = inbound;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), String> {
        if let Some(blocked) = &self.blocked {
            self.line = blocked.line;
            let limit = self.now_us() + 1_000_000;
            while self.blocked.is_some() && self.step(limit)? {}
            if self.blocked.is_some() {
                return Err("the call still waits at the end of the script".into());
            }
        }
        Ok(())
    }

    /// Lets time pass.
    fn wait_until(&mut self, us: i64) -> Result<(), String> {
        while self.now_us() < us {
            self.step(us)?;
        }
        Ok(())
    }

    /// Lets time pass to whatever comes next, at most until `us`; whether time is left.
    fn step(&mut self, us: i64) -> Result<bool, String> {
        let mut until = self.moment(us);
        if let Some(blocked) = &self.blocked {
            until = until.min(blocked.pending.until());
        }
        let left = self.sockets.world().step(until);
        self.progress()?;
        Ok(left || self.now_us() < us)
    }

    /// Asks whether the call that waits has ended.
    fn progress(&mut self) -> Result<(), String> {
        let Some(mut blocked) = self.blocked.take() else { return Ok(()) };
        let Some(outcome) = self.sockets.attempt(&mut blocked.pending) else {
            self.blocked = Some(blocked);
            return Ok(());
        };
        let line = std::mem::replace(&mut self.line, blocked.line);
        let now_us = self.now_us();
        let due = (blocked.end_us, blocked.end_us);
        self.check_time(blocked.kind, due, now_us, Some(blocked.start_us), "the call's return")?;
        self.ended(&blocked.spec, outcome)?;
        self.line = line;
        Ok(())
    }

    /// A call has begun that waits.
    pub fn block(
        &mut self,
        pending: Pending,
        spec: &CallSpec,
        kind: EventTime,
    ) -> Result<(), String> {
        let Some(end) = spec.end else {
            return Err("the call waits, which the script does not expect".into());
        };
        if self.blocked.is_some() {
            return Err("another call waits already".into());
        }
        let base = match kind {
            EventTime::After(span) => self.due.0 - span,
            _ => 0,
        };
        self.blocked = Some(Blocked {
            pending,
            spec: spec.clone(),
            line: self.line,
            start_us: self.due.0,
            end_us: base + end,
            kind,
        });
        Ok(())
    }

    /// Compares what a call gave with what it was to give.
    pub fn ended(&mut self, spec: &CallSpec, outcome: Outcome<Answer>) -> Result<(), String> {
        let answer = match &outcome {
            Ok(answer) => answer.clone(),
            Err(_) => Answer { value: -1, ..Answer::default() },
        };
        let told = match &outcome {
            Ok(answer) => format!("{}", answer.value),
            Err(error) => format!("-1 {error}"),
        };
        self.check_result(spec, &outcome, &told)?;
        if outcome.is_ok() {
            self.after_call(spec, &answer)?;
        }
        Ok(())
    }

    /// Whether something happened when it was to happen.
    pub fn check_time(
        &self,
        kind: EventTime,
        (from, to): (i64, i64),
        actual: i64,
        last: Option<i64>,
        what: &str,
    ) -> Result<(), String> {
        if kind == EventTime::Any {
            return Ok(());
        }
        let mut tolerance = self.tolerance_us;
        if let Some(last) = last {
            let share = self.tolerance_percent / 100.0 * (from - last) as f64;
            tolerance = tolerance.max(share as i64);
        }
        if actual < from - tolerance || actual > to + tolerance {
            let due = if from == to { seconds(from) } else { seconds(from) + "~" + &seconds(to) };
            return Err(format!("{what} was due at {due} s, but came at {} s", seconds(actual)));
        }
        Ok(())
    }

    /// When the event before was to happen.
    pub fn last_due(&self) -> Option<i64> {
        self.last_us
    }

    /// How far a timestamp may be off, in microseconds.
    pub fn timestamp_tolerance_us(&self) -> i64 {
        self.tolerance_us.max((self.tolerance_percent / 100.0 * self.due.0 as f64) as i64)
    }

    /// The next packet that the stack sends, of whatever flow, and when.
    pub fn next_packet(&mut self, kind: EventTime) -> Result<(Instant, Vec<u8>), String> {
        let now_us = self.now_us();
        let limit = match kind {
            EventTime::Any => now_us + PATIENCE_ANY_US,
            _ => self.due.1.max(now_us) + PATIENCE_US,
        };
        loop {
            if let Some(packet) = self.sockets.world().take_packet() {
                return Ok(packet);
            }
            if !self.step(limit)? {
                return Err(format!("no packet came until {} s", seconds(limit)));
            }
        }
    }

    fn assert(&mut self, code: &str) -> Result<(), String> {
        let fd = self.flow().and_then(|flow| flow.descriptor).ok_or("no socket to ask")?;
        let values = self.sockets.info(fd).map_err(|error| format!("no information: {error}"))?;
        let lookup = |name: &str| {
            let known = values.iter().chain(info::NAMES).find(|(known, _)| *known == name);
            known.map(|(_, value)| *value as i64)
        };
        assertion::check(code, &lookup)
    }

    /// The flow under test.
    pub fn flow(&mut self) -> Option<&mut Flow> {
        self.flows.get_mut(self.current?)
    }

    /// Puts a flow under test.
    pub fn begin_flow(&mut self, flow: Flow) {
        self.flows.push(flow);
        self.current = Some(self.flows.len() - 1);
    }

    /// The flow that a descriptor of the script belongs to.
    pub fn flow_of(&mut self, descriptor: i32) -> Option<&mut Flow> {
        self.flows.iter_mut().rev().find(|flow| flow.descriptor == Some(descriptor))
    }

    /// The flow that waits to be accepted.
    pub fn flow_to_accept(&mut self) -> Option<&mut Flow> {
        self.flows.iter_mut().find(|flow| {
            flow.descriptor.is_none()
                && matches!(flow.phase, Phase::SynAckSent | Phase::Established)
        })
    }
}

/// Microseconds as seconds, for people.
pub(crate) fn seconds(us: i64) -> String {
    format!("{:.6}", us as f64 / 1e6)
}
