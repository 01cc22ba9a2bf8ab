//! Says what to install if DPDK is missing; `dpdk-sys` does the building.

fn main() {
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
    let found =
        pkg_config::Config::new().atleast_version("22.11").cargo_metadata(false).probe("libdpdk");
    if found.is_err() {
        println!(
            "cargo::error=DPDK 22.11 or newer was not found by pkg-config: install it with `apt-get install libdpdk-dev pkg-config` (Debian, Ubuntu) or set PKG_CONFIG_PATH to the folder of its libdpdk.pc."
        );
    }
}
