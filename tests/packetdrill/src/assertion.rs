//! Assertions in the form of Python's: comparisons of numbers with names.

/// Checks all assertions of a piece of code.
///
/// # Errors
/// One does not hold, or is not understood.
pub fn check(code: &str, lookup: &dyn Fn(&str) -> Option<i64>) -> Result<(), String> {
    let joined = code.replace("\\\n", " ");
    for statement in joined.lines().flat_map(statements) {
        let statement = statement.trim();
        if statement.is_empty() || statement.starts_with("print") {
            continue;
        }
        let Some(rest) = statement.strip_prefix("assert ") else {
            return Err(format!("not an assertion: {statement}"));
        };
        let mut parser = Parser { text: rest, lookup };
        let value = parser.any()?;
        let rest = parser.rest();
        if !rest.is_empty() && !rest.starts_with(',') {
            return Err(format!("not understood: {rest}"));
        }
        if value == 0 {
            return Err(format!("does not hold: {rest_of}", rest_of = describe(statement, lookup)));
        }
    }
    Ok(())
}

/// Statements of a line: semicolons part them, and a remark ends the last.
fn statements(line: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quote) = (0, None);
    for (at, c) in line.char_indices() {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (';', None) => {
                parts.push(&line[start..at]);
                start = at + 1;
            }
            ('#', None) => {
                parts.push(&line[start..at]);
                return parts;
            }
            _ => {}
        }
    }
    parts.push(&line[start..]);
    parts
}

/// A statement with the values of its names.
fn describe(statement: &str, lookup: &dyn Fn(&str) -> Option<i64>) -> String {
    let words = statement.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let mut values: Vec<String> = words
        .filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()))
        .filter_map(|word| lookup(word).map(|value| format!("{word} = {value}")))
        .collect();
    values.dedup();
    format!("{statement} ({})", values.join(", "))
}

struct Parser<'a> {
    text: &'a str,
    lookup: &'a dyn Fn(&str) -> Option<i64>,
}

impl Parser<'_> {
    fn rest(&mut self) -> &str {
        self.text = self.text.trim_start();
        self.text
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest().starts_with(token) {
            true => {
                self.text = &self.text[token.len()..];
                true
            }
            false => false,
        }
    }

    fn take_word(&mut self, word: &str) -> bool {
        let rest = self.rest();
        let behind = rest.strip_prefix(word);
        let found = behind.is_some_and(|behind| {
            !behind.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        });
        found && self.take(word)
    }

    fn any(&mut self) -> Result<i64, String> {
        let mut value = self.all()?;
        while self.take_word("or") {
            let right = self.all()?;
            value = if value != 0 { value } else { right };
        }
        Ok(value)
    }

    fn all(&mut self) -> Result<i64, String> {
        let mut value = self.negation()?;
        while self.take_word("and") {
            let right = self.negation()?;
            value = if value == 0 { 0 } else { right };
        }
        Ok(value)
    }

    fn negation(&mut self) -> Result<i64, String> {
        if self.take_word("not") {
            return Ok(i64::from(self.negation()? == 0));
        }
        self.comparison()
    }

    /// Comparisons form chains: `1 <= x <= 2`.
    fn comparison(&mut self) -> Result<i64, String> {
        let mut left = self.bits()?;
        let mut holds = None;
        loop {
            let operator = ["==", "!=", "<=", ">=", "<", ">"].into_iter().find(|operator| {
                !self.rest().starts_with("<<") && self.rest().starts_with(operator)
            });
            let Some(operator) = operator else { return Ok(holds.map_or(left, i64::from)) };
            self.take(operator);
            let right = self.bits()?;
            let this = match operator {
                "==" => left == right,
                "!=" => left != right,
                "<=" => left <= right,
                ">=" => left >= right,
                "<" => left < right,
                _ => left > right,
            };
            holds = Some(holds.unwrap_or(true) && this);
            left = right;
        }
    }

    fn bits(&mut self) -> Result<i64, String> {
        let mut value = self.sum()?;
        loop {
            if self.take("&") {
                value &= self.sum()?;
            } else if self.take("|") {
                value |= self.sum()?;
            } else if self.take("<<") {
                value <<= self.sum()?.clamp(0, 62);
            } else {
                return Ok(value);
            }
        }
    }

    fn sum(&mut self) -> Result<i64, String> {
        let mut value = self.product()?;
        loop {
            if self.take("+") {
                value += self.product()?;
            } else if self.take("-") {
                value -= self.product()?;
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Result<i64, String> {
        let mut value = self.atom()?;
        loop {
            if self.take("*") {
                value *= self.atom()?;
            } else if self.take("//") || self.take("/") {
                value = value.checked_div(self.atom()?).ok_or("a division by zero")?;
            } else if self.take("%") {
                value = value.checked_rem(self.atom()?).ok_or("a division by zero")?;
            } else {
                return Ok(value);
            }
        }
    }

    fn atom(&mut self) -> Result<i64, String> {
        if self.take("-") {
            return Ok(-self.atom()?);
        }
        if self.take("~") {
            return Ok(!self.atom()?);
        }
        if self.take("(") {
            let value = self.any()?;
            return if self.take(")") {
                Ok(value)
            } else {
                Err("a parenthesis without end".into())
            };
        }
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let word = rest[..end].to_owned();
        self.take(&word);
        if let Some(hex) = word.strip_prefix("0x") {
            return i64::from_str_radix(hex, 16).map_err(|_| format!("not a number: {word}"));
        }
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse().map_err(|_| format!("not a number: {word}"));
        }
        match word.as_str() {
            "True" => Ok(1),
            "False" => Ok(0),
            "" => Err(format!("expected a value: {}", self.text)),
            name => (self.lookup)(name).ok_or_else(|| format!("nothing is known of {name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(name: &str) -> Option<i64> {
        match name {
            "a" => Some(10),
            "b" => Some(3),
            _ => None,
        }
    }

    #[test]
    fn what_holds_and_what_does_not() {
        for code in [
            "assert a == 10, a",
            "assert a == 10, 'a=%d' % a; assert b <= 3",
            "\nassert 9 <= a <= 11,a # a remark; with a semicolon\n  assert (a & 2) != 0\n",
            "assert a == 7 + b and not b == a, 'or; not'",
            "assert a == 1000 - 990; \\\n assert b * 2 % 4 == 2",
            "assert a > 5 or c == 1",
        ] {
            // A name that is not known is an error even where Python would not look.
            let outcome = check(code, &values);
            assert_eq!(outcome.is_ok(), !code.contains('c') || !code.contains("c =="), "{code}");
        }
        assert!(check("assert a == 9, a", &values).unwrap_err().contains("a = 10"));
        assert!(check("assert 1 <= a <= 9", &values).is_err());
        assert!(check("import os", &values).unwrap_err().contains("not an assertion"));
    }
}
