//! Bulk transfer in both directions, with the kernel as client and as server.
