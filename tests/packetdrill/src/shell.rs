//! Shell commands of scripts. None is ever run: the few that scripts use to set the machine up are
//! understood, and change the virtual world.

use std::path::Path;

use crate::socket::Sockets;

/// Does what `commands` say. `folder` is where `./defaults.sh` lies.
///
/// # Errors
/// A command is not known, or says something that is not.
pub fn run(sockets: &mut Sockets, commands: &str, folder: &Path) -> Result<(), String> {
    let joined = commands.replace("\\\n", " ");
    for line in joined.lines() {
        for command in line.split(';') {
            let command = strip(command);
            if !command.is_empty() {
                one(sockets, &command, folder)?;
            }
        }
    }
    Ok(())
}

/// A command without its remark, without what becomes of its output, and with sums done.
fn strip(command: &str) -> String {
    let mut words = String::new();
    let mut quoted = false;
    for c in command.trim().chars() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted && (words.is_empty() || words.ends_with(' ')) => break,
            '>' if !quoted => {
                // `2>` is about another output.
                if words.ends_with(" 2") {
                    words.pop();
                }
                break;
            }
            _ => {}
        }
        words.push(c);
    }
    expand(words.trim())
}

/// `$((a*b))` is done.
fn expand(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("$((") {
        let Some((sum, after)) = behind.split_once("))") else { break };
        let product = sum.split('*').try_fold(1u64, |product, factor| {
            factor.trim().parse::<u64>().ok().and_then(|factor| product.checked_mul(factor))
        });
        out.push_str(before);
        match product {
            Some(product) => out.push_str(&product.to_string()),
            None => out.push_str(sum),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Words, of which one may be in quotation marks as a whole or in part.
fn split(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in command.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

fn one(sockets: &mut Sockets, command: &str, folder: &Path) -> Result<(), String> {
    if command.starts_with("nstat") {
        return counters(sockets, command);
    }
    let words = split(command);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [path] if path.starts_with("./") && path.ends_with(".sh") => {
            let path = folder.join(path);
            let text = std::fs::read_to_string(&path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            run(sockets, &text, folder)
        }
        ["sysctl", settings @ ..] | ["./set_sysctls.py", settings @ ..] => {
            for setting in settings.iter().filter(|setting| !setting.starts_with('-')) {
                let Some((name, value)) = setting.split_once('=') else {
                    return Err(format!("sysctl without a value: {setting}"));
                };
                sockets.set_sysctl(name, value)?;
            }
            Ok(())
        }
        ["ip", "link", "set", "dev", "tun0", "mtu", mtu] => {
            sockets.settings().mtu = mtu.parse().map_err(|_| format!("not an MTU: {mtu}"))?;
            Ok(())
        }
        ["tc", "qdisc", "add", "dev", "tun0", "root", "pfifo", rest @ ..] => {
            // A queue that holds nothing drops all that is sent.
            let stopped = rest == ["limit", "0"];
            sockets.stop_wire(stopped);
            Ok(())
        }
        ["tc", "qdisc", "delete" | "del", ..] => {
            sockets.stop_wire(false);
            Ok(())
        }
        // A world ends with its script, so nothing is to be restored; there are no cached metrics;
        // no segmentation is left to a device.
        [restore] if restore.starts_with("/tmp/sysctl_restore_") => Ok(()),
        ["ip", "tcp_metrics", ..] | ["ethtool", "-K", ..] | ["sync"] | ["true"] => Ok(()),
        _ => Err(format!("unknown command: {command}")),
    }
}

/// `nstat -n` forgets what was counted; `nstat | grep NAME | grep -q " N "` compares.
fn counters(sockets: &mut Sockets, command: &str) -> Result<(), String> {
    let parts: Vec<&str> = command.split('|').map(str::trim).collect();
    if parts == ["nstat -n"] {
        sockets.forget_counters();
        return Ok(());
    }
    let (Some(name), Some(count)) = (
        parts.get(1).and_then(|part| part.strip_prefix("grep ")),
        parts.get(2).and_then(|part| part.strip_prefix("grep -q ")),
    ) else {
        return Err(format!("unknown command: {command}"));
    };
    let wanted: u64 =
        count.trim_matches(['"', ' ']).parse().map_err(|_| format!("not a count: {count}"))?;
    let counted = sockets.counter(name.trim()).ok_or(format!("there is no counter {name}"))?;
    if counted != wanted {
        return Err(format!("{name} is {counted}, not {wanted}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Settings;

    #[test]
    fn knobs_are_turned_and_nothing_is_run() {
        let mut sockets = Sockets::new(Settings::default(), 3);
        let folder = Path::new(".");
        let text = "sysctl -q net.ipv4.tcp_rmem=\"4096 540000 $((15*1024*1024))\" # remark\n\
                    ./set_sysctls.py /proc/sys/net/ipv4/tcp_timestamps=0 \\\n \
                    /proc/sys/net/ipv4/tcp_sack=0 > /dev/null 2>&1; true
                    sysctl -q net.ipv4.tcp_syn_retries=2 2>/dev/null";
        run(&mut sockets, text, folder).unwrap();
        let config = sockets.settings().sysctls.tcp_config();
        assert!(!config.timestamps && !config.sack);
        assert_eq!(config.syn_retries, 2);
        assert_eq!(sockets.settings().sysctls.number("tcp_rmem", 2), 15 << 20);
        assert!(run(&mut sockets, "rm -rf /", folder).unwrap_err().contains("unknown command"));
        assert!(run(&mut sockets, "sysctl -q net.ipv4.tcp_wrong=1", folder).is_err());
    }
}
