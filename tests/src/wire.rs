//! HTTP/1.1 by hand over a kernel socket, for what curl would not send.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::process::PATIENCE;

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// As many bytes as Content-Length says; none in an answer to HEAD.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }
}

/// A connection; make it within [`Namespace::enter`](crate::Namespace::enter).
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
    input: BufReader<TcpStream>,
}

impl RawConnection {
    /// Connects.
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a bound");
        stream.set_write_timeout(Some(PATIENCE)).expect("a bound");
        stream.set_nodelay(true).expect("no delay");
        let input = BufReader::new(stream.try_clone().expect("a second handle"));
        Self { stream, input }
    }

    /// The socket.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("to send");
    }

    /// Receives one answer to a GET.
    pub fn response(&mut self) -> Response {
        let mut response = self.head();
        let len = response.header("content-length").expect("a length").parse().expect("a number");
        response.body = self.body(len);
        response
    }

    /// Receives `len` bytes of a body.
    pub fn body(&mut self, len: usize) -> Vec<u8> {
        let mut body = vec![0; len];
        self.input.read_exact(&mut body).expect("the whole body");
        body
    }

    /// Receives one answer to a HEAD, or the head of any answer.
    pub fn head(&mut self) -> Response {
        let start = self.line();
        let status = start.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {start:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                return Response { status, headers, body: Vec::new() };
            }
            let (name, value) = line.split_once(':').expect("a header line");
            headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.input.read_line(&mut line).expect("a line");
        line.strip_suffix("\r\n").unwrap_or_else(|| panic!("cut off: {line:?}")).to_string()
    }

    /// Waits until the peer ends the connection, by FIN or RST; what still came before.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.input.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the connection did not end: {error}"),
        }
        rest
    }
}
