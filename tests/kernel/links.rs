//! The other devices: a packet socket on a veth, shared memory, captures.
