//! millstream-disk
