//! millstream-core
