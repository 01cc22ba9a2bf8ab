//! millstream-http
