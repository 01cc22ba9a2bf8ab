//! A place in a text, and the small pieces of the language.

/// Why a text is not a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Counted from 1.
    pub line: u32,
    /// What was expected there.
    pub message: String,
}

impl std::fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for SyntaxError {}

/// What parsing gives.
pub type Parse<T> = Result<T, SyntaxError>;

/// A place in a text.
#[derive(Clone)]
pub struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The beginning of a text.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// What follows.
    pub fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// The line, counted from 1.
    pub fn line(&self) -> u32 {
        let before = self.text.get(..self.at).unwrap_or_default();
        before.bytes().filter(|byte| *byte == b'\n').count() as u32 + 1
    }

    /// An error at this place.
    pub fn error<T>(&self, message: impl Into<String>) -> Parse<T> {
        let found: String = self.rest().chars().take_while(|c| *c != '\n').take(24).collect();
        let message = format!("{}, but found `{found}`", message.into());
        Err(SyntaxError { line: self.line(), message })
    }

    fn advance(&mut self, count: usize) {
        self.at = (self.at + count).min(self.text.len());
    }

    /// Passes white space and comments.
    pub fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.advance(rest.len() - trimmed.len());
            if trimmed.starts_with("//") {
                self.advance(trimmed.find('\n').unwrap_or(trimmed.len()));
            } else if trimmed.starts_with("/*") {
                self.advance(trimmed.find("*/").map_or(trimmed.len(), |end| end + 2));
            } else {
                return;
            }
        }
    }

    /// Whether nothing but white space and comments follows.
    pub fn at_end(&mut self) -> bool {
        self.skip();
        self.rest().is_empty()
    }

    /// Whether `token` follows.
    pub fn sees(&mut self, token: &str) -> bool {
        self.skip();
        self.rest().starts_with(token)
    }

    /// Takes `token` if it follows.
    pub fn take(&mut self, token: &str) -> bool {
        let found = self.sees(token);
        if found {
            self.advance(token.len());
        }
        found
    }

    /// Takes `token`, which must follow.
    ///
    /// # Errors
    /// Something else follows.
    pub fn expect(&mut self, token: &str) -> Parse<()> {
        if self.take(token) { Ok(()) } else { self.error(format!("expected `{token}`")) }
    }

    /// Takes characters as long as they are of a kind.
    pub fn while_in(&mut self, kind: impl Fn(char) -> bool) -> &'a str {
        self.skip();
        let rest = self.rest();
        let len = rest.find(|c| !kind(c)).unwrap_or(rest.len());
        self.advance(len);
        &rest[..len]
    }

    /// The word that follows, if one does; stays where it is.
    pub fn peek_word(&mut self) -> &'a str {
        self.clone().while_in(|c| c.is_ascii_alphanumeric() || c == '_')
    }

    /// Takes a word.
    ///
    /// # Errors
    /// None follows.
    pub fn word(&mut self) -> Parse<&'a str> {
        let word = self.peek_word();
        if word.is_empty() {
            return self.error("expected a word");
        }
        self.skip();
        self.advance(word.len());
        Ok(word)
    }

    /// Takes a word if it is this one.
    pub fn take_word(&mut self, word: &str) -> bool {
        let found = self.peek_word() == word;
        if found {
            self.skip();
            self.advance(word.len());
        }
        found
    }

    /// Whether a number follows.
    pub fn sees_number(&mut self) -> bool {
        self.skip();
        let digits = self.rest().strip_prefix('-').unwrap_or(self.rest());
        digits.starts_with(|c: char| c.is_ascii_digit())
    }

    /// Takes a whole number, decimal or hexadecimal.
    ///
    /// # Errors
    /// None follows, or it is too large.
    pub fn integer(&mut self) -> Parse<i64> {
        self.skip();
        let start = self.clone();
        let negative = self.take("-");
        let value = if self.take("0x") {
            i64::from_str_radix(self.while_in(|c| c.is_ascii_hexdigit()), 16)
        } else {
            let rest = self.rest();
            let len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            self.advance(len);
            rest[..len].parse()
        };
        match value {
            Ok(value) => Ok(if negative { -value } else { value }),
            Err(_) => start.error("expected a whole number"),
        }
    }

    /// Takes a number that fits a narrower type.
    ///
    /// # Errors
    /// None follows, or it is too large.
    pub fn number<T: TryFrom<i64>>(&mut self) -> Parse<T> {
        let start = self.clone();
        match T::try_from(self.integer()?) {
            Ok(value) => Ok(value),
            Err(_) => start.error("expected a smaller number"),
        }
    }

    /// Takes seconds, as microseconds.
    ///
    /// # Errors
    /// No number follows.
    pub fn seconds(&mut self) -> Parse<i64> {
        self.skip();
        let start = self.clone();
        let negative = self.take("-");
        let rest = self.rest();
        let whole = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let mut len = whole;
        let mut micros: i64 = 0;
        // A point counts only with a digit behind it: `0...0.2` is a range.
        if let Some(fraction) = rest[whole..].strip_prefix('.')
            && fraction.starts_with(|c: char| c.is_ascii_digit())
        {
            let digits = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
            len += 1 + digits;
            let mut unit = 100_000;
            for digit in fraction[..digits].bytes() {
                micros += i64::from(digit - b'0') * unit;
                unit /= 10;
            }
        }
        if len == 0 {
            return start.error("expected a time in seconds");
        }
        if whole != 0 {
            let Ok(seconds) = rest[..whole].parse::<i64>() else {
                return start.error("expected a time in seconds");
            };
            micros += seconds * 1_000_000;
        }
        self.advance(len);
        Ok(if negative { -micros } else { micros })
    }

    /// Takes what stands between `open` and `close`.
    ///
    /// # Errors
    /// No such thing follows.
    pub fn between(&mut self, open: &str, close: &str) -> Parse<&'a str> {
        let start = self.clone();
        self.expect(open)?;
        let rest = self.rest();
        let Some(len) = rest.find(close) else {
            return start.error(format!("`{open}` without `{close}`"));
        };
        self.advance(len + close.len());
        Ok(&rest[..len])
    }

    /// Takes a text in quotation marks.
    ///
    /// # Errors
    /// None follows.
    pub fn quoted(&mut self) -> Parse<String> {
        let start = self.clone();
        self.expect("\"")?;
        let mut text = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.advance(at + 1);
                    return Ok(text);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('0') => text.push('\0'),
                    Some(c) => text.push(c),
                    None => break,
                },
                c => text.push(c),
            }
        }
        start.error("a text without its end")
    }
}
