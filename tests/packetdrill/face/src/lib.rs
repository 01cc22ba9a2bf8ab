//! The C face of the scripts' sockets: a shared library that the genuine packetdrill drives.
//!
//! ```sh
//! cargo build -p millstream-packetdrill-face
//! tests/packetdrill/genuine target/kernel-scripts/tcp_basic_server.pkt
//! ```
//!
//! packetdrill loads the library (`--so_filename`), asks [`packetdrill_interface_init`] for a table
//! of functions in the place of the system's calls, and does all else itself. Time is virtual: it
//! passes when packetdrill sleeps, or waits for a packet.
//!
//! packetdrill calls from two threads: its main one, and one for calls that a script expects to
//! block. The stack is not made for threads, so it lives on one of its own (`server`) and takes
//! requests; whoever asks sleeps until the answer is there, which is also how packetdrill sees that
//! a call blocks. This file translates between C and requests, and is the only one with `unsafe`.

#![deny(unsafe_op_in_unsafe_fn)]

mod fds;
mod server;
mod table;

use std::ffi::{CStr, c_char, c_int, c_long, c_longlong, c_uint, c_ulong, c_void};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::OnceLock;

use libc::{iovec, msghdr, pollfd, size_t, sockaddr, sockaddr_in, socklen_t, ssize_t};
use millstream_packetdrill::calls::{Answer, Call};
use millstream_packetdrill::options::OptionValue;
use millstream_packetdrill::symbols::{self, Errno};

use crate::server::{Handle, Reply, Request};
pub use crate::table::Interface;

/// The thread that the stack lives on, while packetdrill uses it.
static SERVER: OnceLock<Handle> = OnceLock::new();

/// Fills in the table. `flags` is what `--so_flags` said: the stack's address, or nothing.
///
/// # Safety
/// `flags` is null or a C string, and `interface` points at a table to be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn packetdrill_interface_init(
    flags: *const c_char,
    interface: *mut Interface,
) {
    let mut address = Ipv4Addr::new(192, 168, 0, 1);
    if !flags.is_null() {
        // SAFETY: the caller says that it is a C string.
        let text = unsafe { CStr::from_ptr(flags) };
        if let Some(given) = text.to_str().ok().and_then(|text| text.parse().ok()) {
            address = given;
        }
    }
    SERVER.get_or_init(|| Handle::start(address));
    // SAFETY: the caller says that it points at a table.
    unsafe { interface.write(table::filled()) };
}

fn ask(request: Request) -> Reply {
    match SERVER.get() {
        Some(server) => server.ask(request),
        None => Reply::Outcome(Err(Errno::EBADF)),
    }
}

/// A call's result as C has it: -1 and `errno`, or the value.
fn give(outcome: Result<i64, Errno>) -> i64 {
    match outcome {
        Ok(value) => value,
        Err(error) => {
            // SAFETY: `errno` of this thread is always there.
            unsafe { *libc::__errno_location() = error as c_int };
            -1
        }
    }
}

fn ask_value(request: Request) -> Result<i64, Errno> {
    ask_answer(request).map(|answer| answer.value)
}

fn ask_answer(request: Request) -> Result<Answer, Errno> {
    match ask(request) {
        Reply::Outcome(outcome) => outcome,
        _ => Err(Errno::EINVAL),
    }
}

/// The address in a `sockaddr`.
///
/// # Safety
/// `address` is null or points at `len` bytes.
unsafe fn address_in(address: *const sockaddr, len: socklen_t) -> Result<SocketAddrV4, Errno> {
    if address.is_null() || (len as usize) < size_of::<sockaddr_in>() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: there are as many bytes as the structure has; any bytes are one.
    let address = unsafe { address.cast::<sockaddr_in>().read_unaligned() };
    if c_int::from(address.sin_family) != libc::AF_INET {
        return Err(Errno::EAFNOSUPPORT);
    }
    let ip = Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr));
    Ok(SocketAddrV4::new(ip, u16::from_be(address.sin_port)))
}

/// Writes an address where C wants it.
///
/// # Safety
/// `out` is null or has room for the bytes that `*len` says, and `len` is null or can be written.
unsafe fn address_out(peer: Option<SocketAddr>, out: *mut sockaddr, len: *mut socklen_t) {
    let Some(SocketAddr::V4(peer)) = peer else { return };
    if out.is_null() || len.is_null() {
        return;
    }
    let address = sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: peer.port().to_be(),
        sin_addr: libc::in_addr { s_addr: peer.ip().to_bits().to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: the caller says that `len` can be read and written, and that `out` has that much room.
    unsafe {
        if *len as usize >= size_of::<sockaddr_in>() {
            out.cast::<sockaddr_in>().write_unaligned(address);
        }
        *len = size_of::<sockaddr_in>() as socklen_t;
    }
}

/// The buffers of a vector.
///
/// # Safety
/// `vector` is null or points at `count` entries.
unsafe fn buffers<'a>(vector: *const iovec, count: usize) -> &'a [iovec] {
    if vector.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: the caller says that there are so many entries.
    unsafe { std::slice::from_raw_parts(vector, count) }
}

/// The bytes that a call sends, `None` if the buffer is at address 0.
///
/// # Safety
/// `data` is null or points at `len` bytes.
unsafe fn bytes_in(data: *const c_void, len: usize) -> Option<Vec<u8>> {
    if data.is_null() {
        return None;
    }
    // SAFETY: the caller says that there are so many bytes.
    Some(unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) }.to_vec())
}

/// Writes bytes into buffers, in order.
///
/// # Safety
/// Each buffer is null or has the room that it says.
unsafe fn bytes_out(data: &[u8], buffers: &[iovec]) {
    let mut rest = data;
    for buffer in buffers {
        let count = rest.len().min(buffer.iov_len);
        if buffer.iov_base.is_null() {
            return;
        }
        // SAFETY: the caller says that there is room for `iov_len` bytes, of which these are no more.
        unsafe { buffer.iov_base.cast::<u8>().copy_from(rest.as_ptr(), count) };
        rest = &rest[count..];
    }
}

/// The file behind a descriptor.
fn owned(fd: c_int) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: `fds` opened it and has let go of it, so that this owns it.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) }
}

fn receive(fd: c_int, room: Option<usize>, flags: c_int) -> Result<Answer, Errno> {
    ask_answer(Request::Call(fd, Call::Receive { room, flags: i64::from(flags) }, 0))
}

fn send(fd: c_int, data: Option<Vec<u8>>, flags: c_int) -> ssize_t {
    give(ask_value(Request::Call(fd, Call::Send { data, flags: i64::from(flags) }, 0))) as ssize_t
}

unsafe extern "C" fn free(_: *mut c_void) {
    ask(Request::End);
}

unsafe extern "C" fn socket(_: *mut c_void, domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    give(ask_value(Request::Socket(domain, kind, protocol))) as c_int
}

unsafe extern "C" fn bind(
    _: *mut c_void,
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> c_int {
    // SAFETY: the caller's pointer and length are those of bind(2).
    let address = unsafe { address_in(address, len) };
    give(address.and_then(|address| ask_value(Request::Bind(fd, address)))) as c_int
}

unsafe extern "C" fn listen(_: *mut c_void, fd: c_int, backlog: c_int) -> c_int {
    give(ask_value(Request::Listen(fd, backlog))) as c_int
}

unsafe extern "C" fn accept(
    _: *mut c_void,
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    let answer = ask_answer(Request::Call(fd, Call::Accept, 0));
    if let Ok(answer) = &answer {
        // SAFETY: the caller's pointers are those of accept(2).
        unsafe { address_out(answer.peer, address, len) };
    }
    give(answer.map(|answer| answer.value)) as c_int
}

unsafe extern "C" fn connect(
    _: *mut c_void,
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> c_int {
    // SAFETY: the caller's pointer and length are those of connect(2).
    let address = unsafe { address_in(address, len) };
    give(address.and_then(|to| ask_value(Request::Call(fd, Call::Connect(to), 0)))) as c_int
}

unsafe extern "C" fn read(_: *mut c_void, fd: c_int, out: *mut c_void, len: size_t) -> ssize_t {
    // SAFETY: as for recv(2).
    unsafe { recv(std::ptr::null_mut(), fd, out, len, 0) }
}

unsafe extern "C" fn readv(
    _: *mut c_void,
    fd: c_int,
    vector: *const iovec,
    count: c_int,
) -> ssize_t {
    // SAFETY: the caller's vector is that of readv(2).
    let buffers = unsafe { buffers(vector, count.max(0) as usize) };
    let answer = receive(fd, Some(buffers.iter().map(|buffer| buffer.iov_len).sum()), 0);
    if let Ok(answer) = &answer {
        // SAFETY: the buffers are those of readv(2).
        unsafe { bytes_out(&answer.data, buffers) };
    }
    give(answer.map(|answer| answer.value)) as ssize_t
}

unsafe extern "C" fn recv(
    _: *mut c_void,
    fd: c_int,
    out: *mut c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    let answer = receive(fd, (!out.is_null()).then_some(len), flags);
    if let Ok(answer) = &answer {
        // SAFETY: the buffer is that of recv(2).
        unsafe { bytes_out(&answer.data, &[iovec { iov_base: out, iov_len: len }]) };
    }
    give(answer.map(|answer| answer.value)) as ssize_t
}

unsafe extern "C" fn recvfrom(
    _: *mut c_void,
    fd: c_int,
    out: *mut c_void,
    len: size_t,
    flags: c_int,
    _address: *mut sockaddr,
    _address_len: *mut socklen_t,
) -> ssize_t {
    // SAFETY: as for recv(2); a stream does not tell whence.
    unsafe { recv(std::ptr::null_mut(), fd, out, len, flags) }
}

unsafe extern "C" fn recvmsg(
    _: *mut c_void,
    fd: c_int,
    message: *mut msghdr,
    flags: c_int,
) -> ssize_t {
    if message.is_null() {
        return give(Err(Errno::EFAULT)) as ssize_t;
    }
    // SAFETY: the caller's message is that of recvmsg(2), and nobody else has it meanwhile.
    let message = unsafe { &mut *message };
    // SAFETY: so are its vector and the buffers in it.
    let buffers = unsafe { buffers(message.msg_iov, message.msg_iovlen) };
    let room = buffers.iter().map(|buffer| buffer.iov_len).sum();
    let answer = receive(fd, Some(room), flags);
    if let Ok(answer) = &answer {
        // SAFETY: as above.
        unsafe { bytes_out(&answer.data, buffers) };
        message.msg_flags = 0;
        message.msg_namelen = 0;
        let len = size_of::<c_int>() as c_uint;
        // SAFETY: CMSG_SPACE only computes.
        let space = unsafe { libc::CMSG_SPACE(len) } as usize;
        match answer.left {
            Some(left) if !message.msg_control.is_null() && message.msg_controllen >= space => {
                // SAFETY: there is room for the header and an int behind it.
                unsafe {
                    let header = libc::CMSG_FIRSTHDR(message);
                    (*header).cmsg_level = libc::SOL_TCP;
                    (*header).cmsg_type = symbols::TCP_INQ as c_int;
                    (*header).cmsg_len = libc::CMSG_LEN(len) as usize;
                    libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(left as c_int);
                }
                message.msg_controllen = space;
            }
            _ => message.msg_controllen = 0,
        }
    }
    give(answer.map(|answer| answer.value)) as ssize_t
}

unsafe extern "C" fn write(_: *mut c_void, fd: c_int, data: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: the buffer is that of write(2).
    send(fd, unsafe { bytes_in(data, len) }, 0)
}

/// All bytes of a vector.
///
/// # Safety
/// Each buffer is null or has the bytes that it says.
unsafe fn gathered(buffers: &[iovec]) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    for buffer in buffers {
        // SAFETY: the caller says so.
        data.extend(unsafe { bytes_in(buffer.iov_base, buffer.iov_len) }?);
    }
    Some(data)
}

unsafe extern "C" fn writev(
    _: *mut c_void,
    fd: c_int,
    vector: *const iovec,
    count: c_int,
) -> ssize_t {
    // SAFETY: the vector is that of writev(2).
    send(fd, unsafe { gathered(buffers(vector, count.max(0) as usize)) }, 0)
}

unsafe extern "C" fn c_send(
    _: *mut c_void,
    fd: c_int,
    data: *const c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the buffer is that of send(2).
    send(fd, unsafe { bytes_in(data, len) }, flags)
}

unsafe extern "C" fn sendto(
    _: *mut c_void,
    fd: c_int,
    data: *const c_void,
    len: size_t,
    flags: c_int,
    _to: *const sockaddr,
    _to_len: socklen_t,
) -> ssize_t {
    // SAFETY: the buffer is that of sendto(2); a stream knows its peer.
    send(fd, unsafe { bytes_in(data, len) }, flags)
}

unsafe extern "C" fn sendmsg(
    _: *mut c_void,
    fd: c_int,
    message: *const msghdr,
    flags: c_int,
) -> ssize_t {
    if message.is_null() {
        return give(Err(Errno::EFAULT)) as ssize_t;
    }
    // SAFETY: the message and what it points at are those of sendmsg(2).
    let data = unsafe { gathered(buffers((*message).msg_iov, (*message).msg_iovlen)) };
    send(fd, data, flags)
}

// Both are variadic in C; on this platform an int or a pointer is passed alike either way.
unsafe extern "C" fn fcntl(_: *mut c_void, fd: c_int, command: c_int, argument: c_int) -> c_int {
    give(ask_value(Request::Fcntl(fd, command, argument))) as c_int
}

unsafe extern "C" fn ioctl(_: *mut c_void, fd: c_int, request: c_ulong, out: *mut c_int) -> c_int {
    let value = ask_value(Request::Ioctl(fd, request as i64));
    if let Ok(value) = value
        && !out.is_null()
    {
        // SAFETY: these requests give an int.
        unsafe { out.write(value as c_int) };
    }
    give(value.map(|_| 0)) as c_int
}

unsafe extern "C" fn close(_: *mut c_void, fd: c_int) -> c_int {
    give(ask_value(Request::Close(fd))) as c_int
}

unsafe extern "C" fn shutdown(_: *mut c_void, fd: c_int, how: c_int) -> c_int {
    give(ask_value(Request::Shutdown(fd, how))) as c_int
}

unsafe extern "C" fn c_getsockopt(
    _: *mut c_void,
    fd: c_int,
    level: c_int,
    name: c_int,
    out: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    if out.is_null() || len.is_null() {
        return give(Err(Errno::EFAULT)) as c_int;
    }
    let value = match ask(Request::GetOption(fd, level, name)) {
        Reply::Option(Ok(value)) => value,
        Reply::Option(Err(error)) => return give(Err(error)) as c_int,
        _ => return give(Err(Errno::EBADF)) as c_int,
    };
    let mut bytes = match value {
        OptionValue::Int(value) => (value as c_int).to_ne_bytes().to_vec(),
        OptionValue::Pair(first, second) => {
            [first as c_int, second as c_int].iter().flat_map(|word| word.to_ne_bytes()).collect()
        }
        OptionValue::Bytes(bytes) => bytes,
    };
    // SAFETY: the pointers are those of getsockopt(2).
    unsafe {
        let room = *len as usize;
        if i64::from(name) == symbols::TCP_INFO && i64::from(level) == symbols::SOL_TCP {
            // Whoever knows of newer fields gets them as zeros.
            bytes.resize(room.max(bytes.len()), 0);
        }
        let count = bytes.len().min(room);
        out.cast::<u8>().copy_from(bytes.as_ptr(), count);
        *len = count as socklen_t;
    }
    0
}

unsafe extern "C" fn setsockopt(
    _: *mut c_void,
    fd: c_int,
    level: c_int,
    name: c_int,
    data: *const c_void,
    len: socklen_t,
) -> c_int {
    // SAFETY: the buffer is that of setsockopt(2).
    let Some(bytes) = (unsafe { bytes_in(data, len as usize) }) else {
        return give(Err(Errno::EFAULT)) as c_int;
    };
    let word = |at: usize| {
        bytes
            .get(at..at + 4)
            .map(|word| i64::from(i32::from_ne_bytes([word[0], word[1], word[2], word[3]])))
    };
    let value = match (i64::from(level), i64::from(name)) {
        (symbols::SOL_SOCKET, symbols::SO_LINGER) => match (word(0), word(4)) {
            (Some(on), Some(seconds)) => OptionValue::Pair(on, seconds),
            _ => return give(Err(Errno::EINVAL)) as c_int,
        },
        (symbols::SOL_TCP, symbols::TCP_CONGESTION) => OptionValue::Bytes(bytes),
        // Options of the IP level take a byte too.
        _ => match (word(0), bytes.first()) {
            (Some(value), _) => OptionValue::Int(value),
            (None, Some(byte)) => OptionValue::Int(i64::from(*byte)),
            (None, None) => return give(Err(Errno::EINVAL)) as c_int,
        },
    };
    give(ask_value(Request::SetOption(fd, level, name, value))) as c_int
}

unsafe extern "C" fn poll(
    _: *mut c_void,
    entries: *mut pollfd,
    count: libc::nfds_t,
    timeout: c_int,
) -> c_int {
    if entries.is_null() {
        return give(Err(Errno::EFAULT)) as c_int;
    }
    // SAFETY: the entries are those of poll(2), and nobody else has them meanwhile.
    let entries = unsafe { std::slice::from_raw_parts_mut(entries, count as usize) };
    let asked = entries.iter().map(|entry| (entry.fd, i64::from(entry.events))).collect();
    let answer = ask_answer(Request::Call(-1, Call::Poll(asked), i64::from(timeout)));
    if let Ok(answer) = &answer {
        for (entry, (ready, _)) in entries.iter_mut().zip(&answer.ready) {
            entry.revents = *ready as i16;
        }
    }
    give(answer.map(|answer| answer.value)) as c_int
}

unsafe extern "C" fn netdev_send(_: *mut c_void, packet: *const c_void, len: size_t) -> c_int {
    // SAFETY: the caller's packet has so many bytes.
    match unsafe { bytes_in(packet, len) } {
        Some(packet) => give(ask_value(Request::Inject(packet))) as c_int,
        None => -1,
    }
}

unsafe extern "C" fn netdev_receive(
    _: *mut c_void,
    out: *mut c_void,
    len: *mut size_t,
    time_us: *mut c_longlong,
) -> c_int {
    if out.is_null() || len.is_null() || time_us.is_null() {
        return -1;
    }
    let Reply::Packet(packet) = ask(Request::NextPacket) else { return -1 };
    // SAFETY: the buffer has the room that `len` says, and all three can be written.
    unsafe {
        match packet {
            Some((moment, packet)) if packet.len() <= *len => {
                out.cast::<u8>().copy_from(packet.as_ptr(), packet.len());
                *len = packet.len();
                *time_us = moment;
            }
            // None will come: an empty one ends the script with an error.
            _ => *len = 0,
        }
    }
    0
}

unsafe extern "C" fn usleep(_: *mut c_void, span: c_uint) -> c_int {
    give(ask_value(Request::Sleep(u64::from(span)))) as c_int
}

unsafe extern "C" fn gettimeofday(
    _: *mut c_void,
    out: *mut libc::timeval,
    _zone: *mut libc::timezone,
) -> c_int {
    let now_us = match ask_value(Request::Now) {
        Ok(now_us) => now_us,
        Err(error) => return give(Err(error)) as c_int,
    };
    if !out.is_null() {
        let time = libc::timeval { tv_sec: now_us / 1_000_000, tv_usec: now_us % 1_000_000 };
        // SAFETY: the structure is that of gettimeofday(2).
        unsafe { out.write(time) };
    }
    0
}

unsafe extern "C" fn epoll_create(_: *mut c_void, _size: c_int) -> c_int {
    give(ask_value(Request::EpollCreate)) as c_int
}

unsafe extern "C" fn epoll_ctl(
    _: *mut c_void,
    set: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut libc::epoll_event,
) -> c_int {
    let (events, data) = match event.is_null() {
        true => (0, 0),
        // SAFETY: the event is that of epoll_ctl(2), packed as the system has it.
        false => unsafe { (i64::from((*event).events), (*event).u64) },
    };
    give(ask_value(Request::EpollControl(set, operation, fd, events, data))) as c_int
}

unsafe extern "C" fn epoll_wait(
    _: *mut c_void,
    set: c_int,
    out: *mut libc::epoll_event,
    max: c_int,
    timeout: c_int,
) -> c_int {
    let call = Call::EpollWait(max.max(0) as usize);
    let answer = ask_answer(Request::Call(set, call, i64::from(timeout)));
    if let Ok(answer) = &answer
        && !out.is_null()
    {
        for (at, (events, data)) in answer.ready.iter().enumerate() {
            let event = libc::epoll_event { events: *events as u32, u64: *data };
            // SAFETY: there are at most `max`, for which there is room.
            unsafe { out.add(at).write_unaligned(event) };
        }
    }
    give(answer.map(|answer| answer.value)) as c_int
}

unsafe extern "C" fn pipe(_: *mut c_void, _: *mut c_int) -> c_int {
    give(Err(Errno::EOPNOTSUPP)) as c_int
}

unsafe extern "C" fn splice(
    _: *mut c_void,
    _fd_in: c_int,
    _offset_in: *mut c_long,
    _fd_out: c_int,
    _offset_out: *mut c_long,
    _len: size_t,
    _flags: c_uint,
) -> ssize_t {
    give(Err(Errno::EOPNOTSUPP)) as ssize_t
}

/// The system's call, in front of which this library stands when it is preloaded: packetdrill asks
/// for `TCP_INFO` with it, on descriptors that are the stack's.
///
/// # Safety
/// As getsockopt(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    out: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    if SERVER.get().is_some() && matches!(ask(Request::Owns(fd)), Reply::Owned(true)) {
        // SAFETY: the caller's pointers are those of getsockopt(2).
        return unsafe { c_getsockopt(std::ptr::null_mut(), fd, level, name, out, len) };
    }
    // SAFETY: the system call itself, with the caller's arguments.
    unsafe { libc::syscall(libc::SYS_getsockopt, fd, level, name, out, len) as c_int }
}
