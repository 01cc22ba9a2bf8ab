//! What a script says, as data.

/// A script: options, then events in the order of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Script {
    /// `--name=value`; a flag without a value has an empty one.
    pub options: Vec<(String, String)>,
    /// The shell commands before the first event.
    pub init: Option<String>,
    /// What is done and expected.
    pub events: Vec<Event>,
}

impl Script {
    /// The value of an option, the last one given.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// One line of a script, so to speak.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Where it stands, counted from 1.
    pub line: u32,
    /// When it happens.
    pub time: EventTime,
    /// What happens.
    pub action: Action,
}

/// When something happens or is expected, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventTime {
    /// Since the script began.
    At(i64),
    /// After the event before.
    After(i64),
    /// Whenever.
    Any,
    /// Between two moments since the script began.
    Between(i64, i64),
    /// Between two moments after the event before.
    AfterBetween(i64, i64),
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A packet is injected, or expected.
    Packet(PacketSpec),
    /// A system call.
    Call(CallSpec),
    /// Shell commands.
    Command(String),
    /// Assertions about the connection.
    Code(String),
}

/// A packet.
#[derive(Clone, Debug, PartialEq)]
pub struct PacketSpec {
    /// Injected into the stack (`<`), or expected of it (`>`).
    pub inbound: bool,
    /// What its type-of-service byte is.
    pub tos: Tos,
    /// Its hop limit, if that matters.
    pub ttl: Option<u8>,
    /// The rest.
    pub body: Body,
}

/// The type-of-service byte of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tos {
    /// Zero when injected; whatever when expected.
    Unsaid,
    /// The two bits of ECN.
    Ecn(u8),
    /// Either of the two codepoints of ECN-capable transports.
    EitherEct,
    /// All of it.
    Byte(u8),
}

/// What a packet carries.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A TCP segment.
    Tcp(TcpSpec),
    /// An ICMP error that quotes a TCP segment.
    Icmp(IcmpSpec),
}

/// A TCP segment. Sequence numbers count from the initial ones of the connection.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpSpec {
    /// Source and destination port, if they are not those of the connection.
    pub ports: Option<(u16, u16)>,
    /// Control bits, as they stand in the header.
    pub flags: u16,
    /// Number of the first byte.
    pub seq: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Next byte wanted.
    pub ack: Option<u32>,
    /// The window field.
    pub window: Option<u16>,
    /// The urgent pointer.
    pub urgent: u16,
    /// The options; `None` (`<...>`): whatever they are.
    pub options: Option<Vec<TcpOption>>,
}

/// A TCP option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TcpOption {
    /// End of the list.
    End,
    /// Padding.
    Nop,
    /// Maximum segment size.
    Mss(u16),
    /// Window scale.
    WindowScale(u8),
    /// Selective acknowledgements are permitted.
    SackOk,
    /// Selective acknowledgements.
    Sack(Vec<(u32, u32)>),
    /// Timestamps.
    Timestamp {
        /// The sender's clock.
        value: u32,
        /// The echo.
        echo: u32,
    },
    /// Any other: kind and content.
    Other(u8, Vec<u8>),
}

/// An ICMP error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IcmpSpec {
    /// The ICMP type.
    pub kind: u8,
    /// The ICMP code.
    pub code: u8,
    /// The MTU of the next hop.
    pub mtu: u16,
    /// Sequence number of the segment that is quoted.
    pub seq: u32,
    /// Its payload's bytes.
    pub len: u32,
}

/// A system call and what is expected of it.
#[derive(Clone, Debug, PartialEq)]
pub struct CallSpec {
    /// Its name.
    pub name: String,
    /// Its arguments.
    pub args: Vec<Expr>,
    /// If it blocks: when it returns, in microseconds, counted as its event's time is.
    pub end: Option<i64>,
    /// What it returns.
    pub result: Expr,
    /// The name of the error that it sets.
    pub errno: Option<String>,
}

/// An argument of a system call.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// `...`
    Ellipsis,
    /// A number.
    Int(i64),
    /// A symbol.
    Word(String),
    /// A text.
    Text(String),
    /// Two expressions with a bar between them.
    Or(Box<Expr>, Box<Expr>),
    /// `[a, b]`
    List(Vec<Expr>),
    /// `{a, b}`
    Group(Vec<Expr>),
    /// `{name=a, name=b}`
    Record(Vec<(String, Expr)>),
    /// `name(a)`
    Apply(String, Vec<Expr>),
}
