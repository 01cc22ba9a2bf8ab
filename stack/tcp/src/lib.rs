//! millstream-tcp
