//! Raw bindings to [DPDK](https://doc.dpdk.org) 22.11 and later.
//!
//! bindgen reads `csrc/shim.h`; the shim has the functions that DPDK only offers as `static inline`
//! and hides what differs between releases. [`mbuf`] has the packet buffer with its fields at
//! fixed offsets, which the shim asserts at build time.
//!
//! DPDK is found through pkg-config. To build against another release than the installed one, say
//! where its `libdpdk.pc` is: `PKG_CONFIG_PATH=DIR`, and for a package that was unpacked below
//! `ROOT` and not installed, `PKG_CONFIG_SYSROOT_DIR=ROOT PKG_CONFIG_LIBDIR=ROOT/usr/lib/x86_64-linux-gnu/pkgconfig`.
//!
//! Linking is dynamic and takes six libraries; EAL loads the drivers as plugins at run time.
//! Everything here is unsafe; `dpdk-port` is the safe side.

pub mod mbuf;

#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unused_imports,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    unnecessary_transmutes
)]
mod ffi {
    include!(concat!(env!("OUT_DIR"), "/dpdk.rs"));
}

pub use ffi::*;
pub use mbuf::{Mbuf, SharedInfo};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linked_library_answers() {
        // SAFETY: returns a pointer to static text.
        let text = unsafe { std::ffi::CStr::from_ptr(rte_strerror(2)) };
        assert_eq!(text.to_str(), Ok("No such file or directory"));
    }

    #[test]
    fn constants_of_64_bits_come_through_the_shim() {
        // SAFETY: constants of the shim.
        let (tso, segments) = unsafe { (SHIM_TX_OFFLOAD_TCP_TSO, SHIM_TX_OFFLOAD_MULTI_SEGS) };
        assert_eq!((tso, segments), (1 << 5, 1 << 15));
    }

    #[test]
    fn tx_offload_has_dpdks_layout() {
        assert_eq!(mbuf::tx_offload(14, 20, 20, 1448), 14 | 20 << 7 | 20 << 16 | 1448 << 24);
    }
}
