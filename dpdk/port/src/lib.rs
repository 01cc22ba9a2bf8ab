//! dpdk-port
