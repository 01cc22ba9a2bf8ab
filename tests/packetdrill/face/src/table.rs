//! The table of functions that packetdrill wants, in its order.

use std::ffi::{c_int, c_long, c_longlong, c_uint, c_ulong, c_void};

use libc::{iovec, msghdr, pollfd, size_t, sockaddr, socklen_t, ssize_t};

type User = *mut c_void;

/// The functions, and what each gets as its first argument.
#[repr(C)]
#[allow(missing_docs, clippy::type_complexity)] // the names are those of the calls
pub struct Interface {
    pub userdata: User,
    pub free: unsafe extern "C" fn(User),
    pub socket: unsafe extern "C" fn(User, c_int, c_int, c_int) -> c_int,
    pub bind: unsafe extern "C" fn(User, c_int, *const sockaddr, socklen_t) -> c_int,
    pub listen: unsafe extern "C" fn(User, c_int, c_int) -> c_int,
    pub accept: unsafe extern "C" fn(User, c_int, *mut sockaddr, *mut socklen_t) -> c_int,
    pub connect: unsafe extern "C" fn(User, c_int, *const sockaddr, socklen_t) -> c_int,
    pub read: unsafe extern "C" fn(User, c_int, *mut c_void, size_t) -> ssize_t,
    pub readv: unsafe extern "C" fn(User, c_int, *const iovec, c_int) -> ssize_t,
    pub recv: unsafe extern "C" fn(User, c_int, *mut c_void, size_t, c_int) -> ssize_t,
    pub recvfrom: unsafe extern "C" fn(
        User,
        c_int,
        *mut c_void,
        size_t,
        c_int,
        *mut sockaddr,
        *mut socklen_t,
    ) -> ssize_t,
    pub recvmsg: unsafe extern "C" fn(User, c_int, *mut msghdr, c_int) -> ssize_t,
    pub write: unsafe extern "C" fn(User, c_int, *const c_void, size_t) -> ssize_t,
    pub writev: unsafe extern "C" fn(User, c_int, *const iovec, c_int) -> ssize_t,
    pub send: unsafe extern "C" fn(User, c_int, *const c_void, size_t, c_int) -> ssize_t,
    pub sendto: unsafe extern "C" fn(
        User,
        c_int,
        *const c_void,
        size_t,
        c_int,
        *const sockaddr,
        socklen_t,
    ) -> ssize_t,
    pub sendmsg: unsafe extern "C" fn(User, c_int, *const msghdr, c_int) -> ssize_t,
    pub fcntl: unsafe extern "C" fn(User, c_int, c_int, c_int) -> c_int,
    pub ioctl: unsafe extern "C" fn(User, c_int, c_ulong, *mut c_int) -> c_int,
    pub close: unsafe extern "C" fn(User, c_int) -> c_int,
    pub shutdown: unsafe extern "C" fn(User, c_int, c_int) -> c_int,
    pub getsockopt:
        unsafe extern "C" fn(User, c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int,
    pub setsockopt:
        unsafe extern "C" fn(User, c_int, c_int, c_int, *const c_void, socklen_t) -> c_int,
    pub poll: unsafe extern "C" fn(User, *mut pollfd, libc::nfds_t, c_int) -> c_int,
    pub netdev_send: unsafe extern "C" fn(User, *const c_void, size_t) -> c_int,
    pub netdev_receive:
        unsafe extern "C" fn(User, *mut c_void, *mut size_t, *mut c_longlong) -> c_int,
    pub usleep: unsafe extern "C" fn(User, c_uint) -> c_int,
    pub gettimeofday: unsafe extern "C" fn(User, *mut libc::timeval, *mut libc::timezone) -> c_int,
    pub epoll_create: unsafe extern "C" fn(User, c_int) -> c_int,
    pub epoll_ctl: unsafe extern "C" fn(User, c_int, c_int, c_int, *mut libc::epoll_event) -> c_int,
    pub epoll_wait:
        unsafe extern "C" fn(User, c_int, *mut libc::epoll_event, c_int, c_int) -> c_int,
    pub pipe: unsafe extern "C" fn(User, *mut c_int) -> c_int,
    pub splice: unsafe extern "C" fn(
        User,
        c_int,
        *mut c_long,
        c_int,
        *mut c_long,
        size_t,
        c_uint,
    ) -> ssize_t,
}

/// The table.
pub(crate) fn filled() -> Interface {
    Interface {
        userdata: std::ptr::null_mut(),
        free: crate::free,
        socket: crate::socket,
        bind: crate::bind,
        listen: crate::listen,
        accept: crate::accept,
        connect: crate::connect,
        read: crate::read,
        readv: crate::readv,
        recv: crate::recv,
        recvfrom: crate::recvfrom,
        recvmsg: crate::recvmsg,
        write: crate::write,
        writev: crate::writev,
        send: crate::c_send,
        sendto: crate::sendto,
        sendmsg: crate::sendmsg,
        fcntl: crate::fcntl,
        ioctl: crate::ioctl,
        close: crate::close,
        shutdown: crate::shutdown,
        getsockopt: crate::c_getsockopt,
        setsockopt: crate::setsockopt,
        poll: crate::poll,
        netdev_send: crate::netdev_send,
        netdev_receive: crate::netdev_receive,
        usleep: crate::usleep,
        gettimeofday: crate::gettimeofday,
        epoll_create: crate::epoll_create,
        epoll_ctl: crate::epoll_ctl,
        epoll_wait: crate::epoll_wait,
        pipe: crate::pipe,
        splice: crate::splice,
    }
}
