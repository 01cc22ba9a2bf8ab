//! `millstream` against the kernel's TCP, in network namespaces.

#![forbid(unsafe_code)]

mod bulk;
mod http;
mod image;
mod impaired;
mod ipv6;
mod links;
mod load;
mod neighbours;
mod refusals;
mod shutdown;
