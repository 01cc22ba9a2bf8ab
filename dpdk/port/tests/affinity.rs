//! EAL pins the thread that starts it; ours may run where it could before. Alone in its process,
//! since DPDK starts once in each.

use dpdk_port::{Eal, EalConfig};
use millstream_buf::HugePages;

/// The CPUs on which this thread may run.
fn cpus() -> Vec<usize> {
    // SAFETY: a cpu_set_t is plain bits, which the kernel fills in; indices below CPU_SETSIZE.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
        (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect()
    }
}

#[test]
fn starting_dpdk_leaves_the_threads_affinity() {
    let before = cpus();
    if before.len() < 2 {
        eprintln!("not run: with one CPU there is nothing to restore");
        return;
    }
    let config = EalConfig {
        huge_pages: HugePages::Never,
        cpus: vec![before[0]],
        pin: false,
        ..EalConfig::default()
    };
    Eal::init(&config).unwrap();
    assert_eq!(cpus(), before);
}
