//! From the text of a script to its data.

use crate::cursor::{Cursor, Parse};
use crate::parse_packet::packet;
use crate::script::{Action, CallSpec, Event, EventTime, Expr, Script};

/// Reads a script. `defines` are names for which values stand.
///
/// # Errors
/// [`SyntaxError`](crate::cursor::SyntaxError) with the line.
pub fn script(text: &str) -> Parse<Script> {
    let mut cursor = Cursor::new(text);
    let mut script = Script::default();
    while cursor.take("--") {
        let name = cursor.word()?.to_owned();
        let value = match cursor.take("=") {
            true => cursor.while_in(|c| !c.is_whitespace()).to_owned(),
            false => String::new(),
        };
        script.options.push((name, value));
    }
    if cursor.sees("`") {
        script.init = Some(cursor.between("`", "`")?.to_owned());
    }
    while !cursor.at_end() {
        let line = cursor.line();
        // A command without a time ends a script.
        let time = if cursor.sees("`") { EventTime::After(0) } else { event_time(&mut cursor)? };
        let action = action(&mut cursor, time)?;
        script.events.push(Event { line, time, action });
    }
    Ok(script)
}

fn event_time(cursor: &mut Cursor<'_>) -> Parse<EventTime> {
    if cursor.take("*") {
        return Ok(EventTime::Any);
    }
    let relative = cursor.take("+");
    let start = cursor.seconds()?;
    if !cursor.take("~") {
        return Ok(if relative { EventTime::After(start) } else { EventTime::At(start) });
    }
    if relative {
        cursor.expect("+")?;
    }
    let end = cursor.seconds()?;
    Ok(if relative { EventTime::AfterBetween(start, end) } else { EventTime::Between(start, end) })
}

fn action(cursor: &mut Cursor<'_>, time: EventTime) -> Parse<Action> {
    if cursor.sees("<") || cursor.sees(">") {
        return Ok(Action::Packet(packet(cursor)?));
    }
    if cursor.sees("`") {
        return Ok(Action::Command(cursor.between("`", "`")?.to_owned()));
    }
    if cursor.sees("%{") {
        return Ok(Action::Code(cursor.between("%{", "}%")?.to_owned()));
    }
    let mut end = None;
    if cursor.take("...") {
        if !matches!(time, EventTime::At(_) | EventTime::After(_)) {
            return cursor.error("a blocking call starts at one moment");
        }
        end = Some(cursor.seconds()?);
    }
    let name = cursor.word()?.to_owned();
    cursor.expect("(")?;
    let args = expressions(cursor, ")")?;
    cursor.expect("=")?;
    let result = expression(cursor)?;
    let mut errno = None;
    if cursor.peek_word().starts_with('E') {
        errno = Some(cursor.word()?.to_owned());
    }
    if cursor.sees("(") {
        // A remark, such as what the error means.
        cursor.between("(", ")")?;
    }
    Ok(Action::Call(CallSpec { name, args, end, result, errno }))
}

/// Expressions up to and with `close`.
fn expressions(cursor: &mut Cursor<'_>, close: &str) -> Parse<Vec<Expr>> {
    let mut list = Vec::new();
    if cursor.take(close) {
        return Ok(list);
    }
    loop {
        list.push(expression(cursor)?);
        if cursor.take(close) {
            return Ok(list);
        }
        cursor.expect(",")?;
    }
}

fn expression(cursor: &mut Cursor<'_>) -> Parse<Expr> {
    let mut left = simple(cursor)?;
    while cursor.take("|") {
        left = Expr::Or(Box::new(left), Box::new(simple(cursor)?));
    }
    Ok(left)
}

fn simple(cursor: &mut Cursor<'_>) -> Parse<Expr> {
    if cursor.take("...") {
        return Ok(Expr::Ellipsis);
    }
    if cursor.sees_number() {
        return Ok(Expr::Int(cursor.integer()?));
    }
    if cursor.sees("\"") {
        let text = cursor.quoted()?;
        // `"text"...`: repeated as often as it takes.
        cursor.take("...");
        return Ok(Expr::Text(text));
    }
    if cursor.take("[") {
        return Ok(Expr::List(expressions(cursor, "]")?));
    }
    if cursor.take("{") {
        return braces(cursor);
    }
    let word = cursor.word()?.to_owned();
    if cursor.take("(") {
        return Ok(Expr::Apply(word, expressions(cursor, ")")?));
    }
    Ok(Expr::Word(word))
}

/// What stands in braces: values, or values with names.
fn braces(cursor: &mut Cursor<'_>) -> Parse<Expr> {
    let mut ahead = cursor.clone();
    let named = ahead.word().is_ok() && {
        if ahead.sees("(") {
            ahead.between("(", ")")?;
        }
        ahead.sees("=")
    };
    if !named {
        return Ok(Expr::Group(expressions(cursor, "}")?));
    }
    let mut fields = Vec::new();
    loop {
        let name = cursor.word()?.to_owned();
        if cursor.sees("(") {
            // `msg_iov(2)=...`: the count says nothing new.
            cursor.between("(", ")")?;
        }
        cursor.expect("=")?;
        fields.push((name, expression(cursor)?));
        if cursor.take("}") {
            return Ok(Expr::Record(fields));
        }
        cursor.expect(",")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::{Body, TcpOption, Tos};

    #[test]
    fn a_script_of_every_kind_of_line() {
        let text = r#"
// A remark.
--mss=1000
--tolerance_usecs=10000

`sysctl -q a=b`

   0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
  +0...0.200 accept(3, ..., ...) = 4   /* another */
 +.002 ... 0.004 connect(4, ..., ...) = -1 EINPROGRESS (Operation now in progress)
  +.1 < S 0:0(0) win 32792 <mss 1000,sackOK,nop,nop,nop,wscale 7>
  *  > [ect0] P. 1:1001(1000) ack 1 <nop, nop, TS val 1 ecr 2, sack 1:2 3:4>
 +.3~+.310 > . 26000:26000(0) ack 1 <...>
   +0 recvmsg(3, {msg_name(...)=...,
        msg_iov(1)=[{..., 1000}],
        msg_control=[{cmsg_level=SOL_TCP, cmsg_data=9000}]}, 0) = 1000
  1.5 %{ assert a == 1, a }%
   +0 `nstat -n`
`restore`
"#;
        let script = script(text).unwrap();
        assert_eq!(script.option("mss"), Some("1000"));
        assert_eq!(script.init.as_deref(), Some("sysctl -q a=b"));
        let times: Vec<_> = script.events.iter().map(|event| event.time).collect();
        use EventTime::*;
        assert_eq!(
            times,
            [
                At(0),
                After(0),
                After(2_000),
                After(100_000),
                Any,
                AfterBetween(300_000, 310_000),
                After(0),
                At(1_500_000),
                After(0),
                After(0)
            ]
        );
        let Action::Call(call) = &script.events[2].action else { panic!() };
        assert_eq!((call.end, call.errno.as_deref()), (Some(4_000), Some("EINPROGRESS")));
        assert_eq!(call.result, Expr::Int(-1));
        let Action::Packet(packet) = &script.events[4].action else { panic!() };
        assert_eq!(packet.tos, Tos::Ecn(2));
        let Body::Tcp(tcp) = &packet.body else { panic!() };
        assert_eq!((tcp.flags, tcp.seq, tcp.len, tcp.ack), (0x18, 1, 1000, Some(1)));
        assert_eq!(tcp.options.as_ref().unwrap()[3], TcpOption::Sack(vec![(1, 2), (3, 4)]));
        assert_eq!(script.events[8].line, 18);
    }

    #[test]
    fn an_error_names_its_line() {
        let error = script("0 socket(...) = 3\n+0 < S 0:0(0) wun 5\n").unwrap_err();
        assert_eq!(error.line, 2, "{error}");
        let error = script("0 `sysctl").unwrap_err();
        assert!(error.message.contains("without"), "{error}");
    }
}
