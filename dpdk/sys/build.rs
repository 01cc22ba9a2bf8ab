//! Finds DPDK through pkg-config, compiles the shim and generates the bindings.

use std::path::PathBuf;
use std::process::Command;

/// The oldest release that the shim and the port crate are tested with.
const OLDEST: &str = "22.11";

/// The DPDK libraries that hold what is called directly. Drivers are plugins: EAL loads them itself.
const LIBRARIES: [&str; 6] =
    ["rte_ethdev", "rte_mbuf", "rte_mempool", "rte_net_ring", "rte_ring", "rte_eal"];

/// DPDK's own functions that have a symbol.
const FUNCTIONS: &str = "rte_(eal_(init|hotplug_add|hotplug_remove|iova_mode)\
    |eth_(from_rings|promiscuous_enable|allmulticast_enable|tx_done_cleanup)\
    |eth_dev_(start|stop|close|get_port_by_name|get_mtu|set_mtu|adjust_nb_rx_tx_desc|rx_intr_(enable|disable|ctl_q_get_fd))\
    |pktmbuf_pool_create|mempool_(free|obj_iter|avail_count)\
    |ring_(create|free)|extmem_(register|unregister)|thread_(register|unregister)|strerror)";

fn main() {
    println!("cargo::rerun-if-changed=csrc");
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
    if let Err(sentence) = build() {
        println!("cargo::error={sentence}");
    }
}

fn build() -> Result<(), String> {
    let dpdk = pkg_config::Config::new()
        .atleast_version(OLDEST)
        .cargo_metadata(false)
        .probe("libdpdk")
        .map_err(|_| missing_dpdk())?;
    let flags = other_cflags()?;

    let mut shim = cc::Build::new();
    shim.file("csrc/shim.c").includes(&dpdk.include_paths).flag("-std=gnu11");
    for flag in &flags {
        shim.flag(flag);
    }
    // `rte_thread_register` and its like were marked experimental in some releases.
    shim.define("ALLOW_EXPERIMENTAL_API", None);
    shim.try_compile("millstream_dpdk_shim").map_err(|error| {
        format!("the C shim does not compile with DPDK {}: {error}", dpdk.version)
            .replace('\n', " ")
    })?;

    generate(&dpdk, &flags)?;

    for path in &dpdk.link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    for library in LIBRARIES {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    println!("cargo::metadata=version={}", dpdk.version);
    watch(&dpdk);
    Ok(())
}

/// The shim holds DPDK's inline functions: another release or another build of it wants a new one.
fn watch(dpdk: &pkg_config::Library) {
    let folder = pkg_config::get_variable("libdpdk", "pcfiledir").map(PathBuf::from);
    let description = folder.map(|folder| folder.join("libdpdk.pc")).into_iter();
    let headers = dpdk
        .include_paths
        .iter()
        .flat_map(|folder| ["rte_version.h", "rte_build_config.h"].map(|name| folder.join(name)));
    for path in description.chain(headers).filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

fn missing_dpdk() -> String {
    format!(
        "DPDK {OLDEST} or newer was not found by pkg-config: install it with `apt-get install libdpdk-dev pkg-config` (Debian, Ubuntu) or set PKG_CONFIG_PATH to the folder of its libdpdk.pc."
    )
}

/// `-include rte_config.h -march=...`: without them DPDK's headers do not compile or assume another
/// CPU than the library, and the pkg-config crate leaves them out.
fn other_cflags() -> Result<Vec<String>, String> {
    let tool = std::env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let output = Command::new(tool)
        .args(["--cflags-only-other", "libdpdk"])
        .output()
        .map_err(|_| missing_dpdk())?;
    Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().map(String::from).collect())
}

fn generate(dpdk: &pkg_config::Library, flags: &[String]) -> Result<(), String> {
    let builder = bindgen::builder()
        .header("csrc/shim.h")
        .clang_args(flags)
        .clang_args(dpdk.include_paths.iter().map(|path| format!("-I{}", path.display())))
        .clang_arg("-DALLOW_EXPERIMENTAL_API")
        .allowlist_function(FUNCTIONS)
        .allowlist_function("shim_.*")
        .allowlist_type("shim_.*")
        .allowlist_var("SHIM_.*|RTE_LOG_(EMERG|ALERT|CRIT|ERR|WARNING|NOTICE|INFO|DEBUG)|LCORE_ID_ANY|RTE_(MAX_LCORE|MEMPOOL_CACHE_MAX_SIZE|VER_.*)|RING_F_.*")
        // Their fields are reached through the shim or through `Mbuf`.
        .blocklist_type("rte_mbuf")
        .raw_line("pub use crate::mbuf::Mbuf as rte_mbuf;")
        .opaque_type("rte_mempool|rte_ring|rte_memzone")
        .default_enum_style(bindgen::EnumVariation::ModuleConsts)
        .layout_tests(false)
        .generate_comments(false);
    // bindgen panics if libclang cannot be loaded; say what to install in place of a backtrace.
    std::panic::set_hook(Box::new(|_| {}));
    let bindings = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| builder.generate()))
        .map_err(|_| "libclang, which generates the bindings to DPDK, was not found: install it with `apt-get install libclang-dev` (Debian, Ubuntu).".to_string())?
        .map_err(|error| format!("no bindings can be generated from the headers of DPDK {}: {error}", dpdk.version).replace('\n', " "))?;
    let _ = std::panic::take_hook();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("dpdk.rs");
    bindings.write_to_file(&out).map_err(|error| format!("cannot write {}: {error}", out.display()))
}
