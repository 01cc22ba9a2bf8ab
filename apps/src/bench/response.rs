//! Reading HTTP/1.1 responses as their bytes come.

use std::mem::MaybeUninit;

/// Bytes that the head of a response may have.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Fields that it may have.
const FIELDS_MAX: usize = 48;

/// A response that has arrived whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its status code.
    pub status: u16,
    /// Bytes of its body.
    pub body_bytes: u64,
    /// The server closes the connection behind it.
    pub close: bool,
}

/// Why a response cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It is not HTTP/1.x.
    Head,
    /// It does not say how long its body is.
    NoLength,
}

/// Cuts a stream of bytes into responses, each with all the bytes that its Content-Length promises.
#[derive(Debug, Default)]
pub struct Parser {
    /// The beginning of a head whose end has not come yet.
    head: Vec<u8>,
    /// The response whose body is coming.
    current: Option<Response>,
    body_left: u64,
}

impl Parser {
    /// Takes bytes that arrived and calls `done` for each response that is whole now.
    ///
    /// # Errors
    /// [`Malformed`]: nothing on this connection can be trusted any more.
    pub fn feed(
        &mut self,
        mut data: &[u8],
        mut done: impl FnMut(Response),
    ) -> Result<(), Malformed> {
        while !data.is_empty() {
            if let Some(response) = self.current {
                let take = self.body_left.min(data.len() as u64);
                self.body_left -= take;
                data = &data[take as usize..];
                if self.body_left == 0 {
                    self.current = None;
                    done(response);
                }
                continue;
            }
            let kept = self.head.len();
            let parsed = if kept == 0 {
                parse_head(data)?
            } else {
                let room = HEAD_BYTES_MAX.saturating_sub(kept).min(data.len());
                self.head.extend_from_slice(&data[..room]);
                parse_head(&self.head)?
            };
            let Some((head_bytes, response)) = parsed else {
                if kept == 0 {
                    self.head.extend_from_slice(data);
                }
                if self.head.len() >= HEAD_BYTES_MAX {
                    return Err(Malformed::Head);
                }
                return Ok(());
            };
            // The head ends in what has just come, else it would have been whole before.
            data = data.get(head_bytes - kept..).unwrap_or_default();
            self.head.clear();
            if response.body_bytes == 0 {
                done(response);
            } else {
                self.body_left = response.body_bytes;
                self.current = Some(response);
            }
        }
        Ok(())
    }

    /// Whether a response has begun and is not whole.
    pub fn is_inside(&self) -> bool {
        self.current.is_some() || !self.head.is_empty()
    }
}

/// Length and meaning of the head at the beginning of `data`; `None` if its end is not there.
fn parse_head(data: &[u8]) -> Result<Option<(usize, Response)>, Malformed> {
    // Not cleared before each response: that would cost more than most heads.
    let mut headers = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut head,
        data,
        &mut headers,
    );
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Malformed::Head),
    };
    let status = head.code.ok_or(Malformed::Head)?;
    let mut body_bytes = None;
    let mut close = head.version == Some(0);
    for header in head.headers.iter() {
        // By length first: few names have the length of one that matters.
        match header.name.len() {
            14 if header.name.eq_ignore_ascii_case("content-length") => {
                let text = std::str::from_utf8(header.value).map_err(|_| Malformed::NoLength)?;
                body_bytes = Some(text.trim().parse().map_err(|_| Malformed::NoLength)?);
            }
            10 if header.name.eq_ignore_ascii_case("connection") => {
                close = header.value.eq_ignore_ascii_case(b"close");
            }
            _ => {}
        }
    }
    // RFC 9110 section 6.4.1: these have no body, whatever their fields say.
    let empty = status == 204 || status == 304;
    let body_bytes = if empty { 0 } else { body_bytes.ok_or(Malformed::NoLength)? };
    Ok(Some((length, Response { status, body_bytes, close })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(parser: &mut Parser, data: &[u8]) -> Result<Vec<Response>, Malformed> {
        let mut responses = Vec::new();
        parser.feed(data, |response| responses.push(response))?;
        Ok(responses)
    }

    const TWO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc\
        HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nConnection: close\r\n\r\n";

    #[test]
    fn responses_are_the_same_however_they_are_cut() {
        let expected = [
            Response { status: 200, body_bytes: 3, close: false },
            Response { status: 404, body_bytes: 0, close: true },
        ];
        assert_eq!(all(&mut Parser::default(), TWO).unwrap(), expected);
        for cut in 1..TWO.len() {
            let mut parser = Parser::default();
            let mut responses = all(&mut parser, &TWO[..cut]).unwrap();
            responses.extend(all(&mut parser, &TWO[cut..]).unwrap());
            assert_eq!(responses, expected, "cut at {cut}");
            assert!(!parser.is_inside());
        }
        let mut parser = Parser::default();
        let mut responses = Vec::new();
        for byte in TWO {
            responses.extend(all(&mut parser, std::slice::from_ref(byte)).unwrap());
        }
        assert_eq!(responses, expected);
    }

    #[test]
    fn a_short_body_is_not_a_response() {
        let mut parser = Parser::default();
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123456789";
        assert_eq!(all(&mut parser, whole).unwrap(), []);
        assert!(parser.is_inside());
    }

    #[test]
    fn what_is_not_http_is_refused() {
        assert_eq!(all(&mut Parser::default(), b"SSH-2.0-x\r\n"), Err(Malformed::Head));
        let endless = vec![b'a'; HEAD_BYTES_MAX + 1];
        let mut data = b"HTTP/1.1 200 OK\r\nA: ".to_vec();
        data.extend_from_slice(&endless);
        assert_eq!(all(&mut Parser::default(), &data), Err(Malformed::Head));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(all(&mut Parser::default(), chunked), Err(Malformed::NoLength));
    }
}
