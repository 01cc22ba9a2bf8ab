//! The numbers that names stand for on Linux.

/// Names and numbers.
const SYMBOLS: &[(&str, i64)] = &[
    ("NULL", 0),
    ("AF_UNSPEC", 0),
    ("AF_INET", 2),
    ("PF_INET", 2),
    ("SOCK_STREAM", SOCK_STREAM),
    ("SOCK_DGRAM", 2),
    ("SOCK_NONBLOCK", O_NONBLOCK),
    ("SOCK_CLOEXEC", 0o2000000),
    ("IPPROTO_IP", 0),
    ("IPPROTO_TCP", 6),
    ("SOL_IP", SOL_IP),
    ("SOL_SOCKET", SOL_SOCKET),
    ("SOL_TCP", SOL_TCP),
    ("SO_REUSEADDR", SO_REUSEADDR),
    ("SO_ERROR", SO_ERROR),
    ("SO_SNDBUF", SO_SNDBUF),
    ("SO_RCVBUF", SO_RCVBUF),
    ("SO_KEEPALIVE", SO_KEEPALIVE),
    ("SO_OOBINLINE", SO_OOBINLINE),
    ("SO_LINGER", SO_LINGER),
    ("SO_REUSEPORT", SO_REUSEPORT),
    ("TCP_NODELAY", TCP_NODELAY),
    ("TCP_MAXSEG", TCP_MAXSEG),
    ("TCP_CORK", TCP_CORK),
    ("TCP_KEEPIDLE", TCP_KEEPIDLE),
    ("TCP_KEEPINTVL", TCP_KEEPINTVL),
    ("TCP_KEEPCNT", TCP_KEEPCNT),
    ("TCP_SYNCNT", TCP_SYNCNT),
    ("TCP_INFO", TCP_INFO),
    ("TCP_QUICKACK", TCP_QUICKACK),
    ("TCP_CONGESTION", TCP_CONGESTION),
    ("TCP_USER_TIMEOUT", TCP_USER_TIMEOUT),
    ("TCP_INQ", TCP_INQ),
    ("TCP_CM_INQ", TCP_INQ),
    ("IP_TOS", IP_TOS),
    ("IP_MTU_DISCOVER", IP_MTU_DISCOVER),
    ("IP_PMTUDISC_DONT", 0),
    ("IP_PMTUDISC_WANT", 1),
    ("IP_PMTUDISC_DO", 2),
    ("IP_PMTUDISC_PROBE", 3),
    ("MSG_OOB", MSG_OOB),
    ("MSG_PEEK", MSG_PEEK),
    ("MSG_TRUNC", MSG_TRUNC),
    ("MSG_DONTWAIT", MSG_DONTWAIT),
    ("MSG_EOR", MSG_EOR),
    ("MSG_WAITALL", MSG_WAITALL),
    ("MSG_NOSIGNAL", MSG_NOSIGNAL),
    ("MSG_MORE", MSG_MORE),
    ("SHUT_RD", 0),
    ("SHUT_WR", 1),
    ("SHUT_RDWR", 2),
    ("F_GETFL", F_GETFL),
    ("F_SETFL", F_SETFL),
    ("O_RDONLY", 0),
    ("O_RDWR", O_RDWR),
    ("O_NONBLOCK", O_NONBLOCK),
    ("SIOCINQ", SIOCINQ),
    ("FIONREAD", SIOCINQ),
    ("SIOCOUTQ", SIOCOUTQ),
    ("SIOCOUTQNSD", SIOCOUTQNSD),
    ("POLLIN", POLLIN),
    ("POLLPRI", POLLPRI),
    ("POLLOUT", POLLOUT),
    ("POLLERR", POLLERR),
    ("POLLHUP", POLLHUP),
    ("POLLNVAL", POLLNVAL),
    ("POLLRDNORM", POLLRDNORM),
    ("POLLWRNORM", POLLWRNORM),
    ("POLLRDHUP", POLLRDHUP),
    ("EPOLLIN", POLLIN),
    ("EPOLLPRI", POLLPRI),
    ("EPOLLOUT", POLLOUT),
    ("EPOLLERR", POLLERR),
    ("EPOLLHUP", POLLHUP),
    ("EPOLLRDHUP", POLLRDHUP),
    ("EPOLLONESHOT", EPOLLONESHOT),
    ("EPOLLET", EPOLLET),
    ("EPOLL_CTL_ADD", 1),
    ("EPOLL_CTL_DEL", 2),
    ("EPOLL_CTL_MOD", 3),
];

pub const SOCK_STREAM: i64 = 1;
pub const SOL_IP: i64 = 0;
pub const SOL_SOCKET: i64 = 1;
pub const SOL_TCP: i64 = 6;
pub const SO_REUSEADDR: i64 = 2;
pub const SO_ERROR: i64 = 4;
pub const SO_SNDBUF: i64 = 7;
pub const SO_RCVBUF: i64 = 8;
pub const SO_KEEPALIVE: i64 = 9;
pub const SO_OOBINLINE: i64 = 10;
pub const SO_LINGER: i64 = 13;
pub const SO_REUSEPORT: i64 = 15;
pub const SO_MEMINFO: i64 = 55;
pub const TCP_NODELAY: i64 = 1;
pub const TCP_MAXSEG: i64 = 2;
pub const TCP_CORK: i64 = 3;
pub const TCP_KEEPIDLE: i64 = 4;
pub const TCP_KEEPINTVL: i64 = 5;
pub const TCP_KEEPCNT: i64 = 6;
pub const TCP_SYNCNT: i64 = 7;
pub const TCP_INFO: i64 = 11;
pub const TCP_QUICKACK: i64 = 12;
pub const TCP_CONGESTION: i64 = 13;
pub const TCP_USER_TIMEOUT: i64 = 18;
pub const TCP_CC_INFO: i64 = 26;
pub const TCP_INQ: i64 = 36;
pub const IP_TOS: i64 = 1;
pub const IP_MTU_DISCOVER: i64 = 10;
pub const MSG_OOB: i64 = 1;
pub const MSG_PEEK: i64 = 2;
pub const MSG_TRUNC: i64 = 0x20;
pub const MSG_DONTWAIT: i64 = 0x40;
pub const MSG_EOR: i64 = 0x80;
pub const MSG_WAITALL: i64 = 0x100;
pub const MSG_NOSIGNAL: i64 = 0x4000;
pub const MSG_MORE: i64 = 0x8000;
pub const F_GETFL: i64 = 3;
pub const F_SETFL: i64 = 4;
pub const O_RDWR: i64 = 2;
pub const O_NONBLOCK: i64 = 0o4000;
pub const SIOCINQ: i64 = 0x541b;
pub const SIOCOUTQ: i64 = 0x5411;
pub const SIOCOUTQNSD: i64 = 0x894b;
pub const POLLIN: i64 = 1;
pub const POLLPRI: i64 = 2;
pub const POLLOUT: i64 = 4;
pub const POLLERR: i64 = 8;
pub const POLLHUP: i64 = 0x10;
pub const POLLNVAL: i64 = 0x20;
pub const POLLRDNORM: i64 = 0x40;
pub const POLLWRNORM: i64 = 0x100;
pub const POLLRDHUP: i64 = 0x2000;
pub const EPOLLONESHOT: i64 = 1 << 30;
pub const EPOLLET: i64 = 1 << 31;

/// The number that a name stands for.
pub fn symbol(name: &str) -> Option<i64> {
    SYMBOLS.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

/// The errors that socket calls set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs)] // the names are those of errno(3)
pub enum Errno {
    ENOENT = 2,
    EBADF = 9,
    EAGAIN = 11,
    EFAULT = 14,
    EEXIST = 17,
    EINVAL = 22,
    EPIPE = 32,
    ENOTSOCK = 88,
    EDESTADDRREQ = 89,
    EMSGSIZE = 90,
    ENOPROTOOPT = 92,
    EPROTONOSUPPORT = 93,
    EOPNOTSUPP = 95,
    EAFNOSUPPORT = 97,
    EADDRINUSE = 98,
    EADDRNOTAVAIL = 99,
    ENETUNREACH = 101,
    ECONNABORTED = 103,
    ECONNRESET = 104,
    ENOBUFS = 105,
    EISCONN = 106,
    ENOTCONN = 107,
    ETIMEDOUT = 110,
    ECONNREFUSED = 111,
    EHOSTUNREACH = 113,
    EALREADY = 114,
    EINPROGRESS = 115,
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}
