//! What a stack spends processor time on.

macro_rules! stages {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// A kind of work whose cost is known by measurement. A clock of the virtual world lets time
        /// pass by it ([`Clock::spend`](crate::Clock::spend)); to a real one it says nothing.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Stage { $($(#[doc = $doc])+ $name,)+ }

        impl Stage {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its name, for tables.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

stages! {
    /// A look at the link's receive queue that found something.
    Poll = "poll",
    /// A frame taken from the link, classified, and put into its receiver's channel or discarded.
    Demux = "demux",
    /// A TCP segment run through its connection.
    Segment = "segment",
    /// A SYN that opens a connection.
    Syn = "syn",
    /// A SYN answered with a cookie.
    Cookie = "cookie",
    /// A datagram verified and handed over.
    Datagram = "datagram",
    /// A frame that was looked into and then dropped or refused.
    Refusal = "refusal",
    /// A task run once.
    Task = "task",
    /// A frame composed and handed to the link.
    Output = "output",
}
