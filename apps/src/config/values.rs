//! Values that TOML has no type for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use millstream::core::ClientRate;
use millstream::dpdk_port::pci_address;
use millstream::tcp::PacingRate;
use serde::{Deserialize, Serialize};

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The address.
    pub ip: Ipv4Addr,
    /// Bits of the prefix.
    pub prefix_len: u8,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no address with a prefix; write it as \"198.18.0.2/24\"");
        let (ip, len) = text.split_once('/').ok_or_else(wrong)?;
        let ip: Ipv4Addr = ip.parse().map_err(|_| wrong())?;
        let prefix_len: u8 = len.parse().map_err(|_| wrong())?;
        let usable =
            prefix_len <= 32 && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast();
        if usable { Ok(Self { ip, prefix_len }) } else { Err(wrong()) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix_len)
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

/// An IPv6 address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct CidrV6 {
    /// The address.
    pub ip: Ipv6Addr,
    /// Bits of the prefix.
    pub prefix_len: u8,
}

impl FromStr for CidrV6 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no IPv6 address with a prefix; write it as \"2001:db8::2/64\"");
        let (ip, len) = text.split_once('/').ok_or_else(wrong)?;
        let ip: Ipv6Addr = ip.parse().map_err(|_| wrong())?;
        let prefix_len: u8 = len.parse().map_err(|_| wrong())?;
        let usable = prefix_len <= 128
            && !ip.is_unspecified()
            && !ip.is_multicast()
            && !ip.is_loopback()
            && ip.to_ipv4_mapped().is_none();
        if usable { Ok(Self { ip, prefix_len }) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for CidrV6 {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<CidrV6> for String {
    fn from(cidr: CidrV6) -> Self {
        format!("{}/{}", cidr.ip, cidr.prefix_len)
    }
}

/// A station address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no address of a station; write it as \"02:00:c6:12:00:02\"");
        // A sign would pass for a digit otherwise.
        let is_two_digits =
            |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(is_two_digits).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        let group = mac[0] & 1 == 1;
        if parts.next().is_some() || group || mac == [0; 6] { Err(wrong()) } else { Ok(Self(mac)) }
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.0.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// A key of 16 bytes, as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Secret(pub [u8; 16]);

impl TryFrom<String> for Secret {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
        // The text itself is not repeated: it may be nearly right.
        let wrong =
            || "a secret has 32 hexadecimal digits; `openssl rand -hex 16` makes one".to_owned();
        let digits = digits.filter(|digits| digits.len() == 32).ok_or_else(wrong)?;
        let mut secret = [0; 16];
        for (byte, pair) in secret.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = (pair[0] << 4 | pair[1]) as u8;
        }
        Ok(Self(secret))
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        secret.0.map(|byte| format!("{byte:02x}")).concat()
    }
}

impl fmt::Debug for Secret {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The address of a card, in its long form.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress(String);

impl TryFrom<String> for PciAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no PCI address; write it as \"0000:01:00.0\"");
        pci_address(&text).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.0
    }
}

/// Bits of payload a second, as people write them: `8M`.
///
/// # Errors
/// One sentence.
pub fn bit_rate(text: &str) -> Result<PacingRate, String> {
    let wrong = || {
        format!("`{text}` is no rate; write bits of payload a second, such as \"8M\" or \"1.5G\"")
    };
    let unit = [('k', 1e3), ('M', 1e6), ('G', 1e9)];
    let split = |(letter, factor): (char, f64)| Some((text.strip_suffix(letter)?, factor));
    let (digits, factor) = unit.into_iter().find_map(split).unwrap_or((text, 1.0));
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let bits: f64 = digits.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
    PacingRate::new((bits * factor / 8.0) as u64).map_err(|error| format!("`{text}`: {error}"))
}

/// A rate with the text that it was read from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct BitRate {
    text: String,
    /// The rate.
    pub rate: PacingRate,
}

impl TryFrom<String> for BitRate {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Ok(Self { rate: bit_rate(&text)?, text })
    }
}

impl From<BitRate> for String {
    fn from(rate: BitRate) -> Self {
        rate.text
    }
}

/// A network and the rate of its clients, with the text that they were read from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkRate {
    text: String,
    /// What the listener is told.
    pub rate: ClientRate,
}

impl TryFrom<String> for NetworkRate {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no network with a rate; write it as \"198.18.7.0/24 8M\" or \
                 \"2001:db8::/32 8M\""
            )
        };
        let (network, rate) = text.split_once(' ').ok_or_else(wrong)?;
        let (ip, len) = network.split_once('/').ok_or_else(wrong)?;
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let len: u8 = len.parse().map_err(|_| wrong())?;
        let rate = ClientRate::new(ip, len, bit_rate(rate.trim())?);
        Ok(Self { rate: rate.map_err(|error| format!("`{text}`: {error}"))?, text })
    }
}

impl From<NetworkRate> for String {
    fn from(rate: NetworkRate) -> Self {
        rate.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_checked() {
        let bytes = |text: &str| bit_rate(text).map(|rate| rate.bytes_per_s());
        assert_eq!(bytes("8M"), Ok(1_000_000));
        assert_eq!(bytes("1.5G"), Ok(187_500_000));
        assert_eq!(bytes("64k"), Ok(8_000));
        assert_eq!(bytes("8000"), Ok(1_000));
        for (bad, says) in [
            ("0", "a pacing rate of 0 would send nothing"),
            ("7k", "is too low"),
            ("9000000G", "is beyond any link"),
            ("8 M", "is no rate"),
            ("8m", "is no rate"),
            ("8MM", "is no rate"),
            ("-8M", "is no rate"),
            ("inf", "is no rate"),
            ("", "is no rate"),
        ] {
            let told = bytes(bad).unwrap_err();
            assert!(told.contains(says) && !told.contains('\n'), "{told}");
        }
        let rule = NetworkRate::try_from("198.18.7.0/24 8M".to_owned()).unwrap();
        assert_eq!(String::from(rule), "198.18.7.0/24 8M");
        assert!(NetworkRate::try_from("2001:db8::/32 1G".to_owned()).is_ok());
        for (bad, says) in [
            ("198.18.7.0/33 8M", "a prefix of 33 bits is longer than the address"),
            ("198.18.7.0 8M", "is no network with a rate"),
            ("198.18.7.0/24", "is no network with a rate"),
            ("198.18.7.0/24 fast", "`fast` is no rate"),
        ] {
            let told = NetworkRate::try_from(bad.to_owned()).unwrap_err();
            assert!(told.contains(says) && !told.contains('\n'), "{told}");
        }
    }

    #[test]
    fn addresses_are_read_and_checked() {
        let cidr: Cidr = "198.18.0.2/24".parse().unwrap();
        assert_eq!(cidr.to_string(), "198.18.0.2/24");
        for bad in ["198.18.0.2", "198.18.0.2/33", "198.18.0/24", "0.0.0.0/0", "224.0.0.1/4", "x/1"]
        {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        let cidr: CidrV6 = "2001:db8::2/64".parse().unwrap();
        assert_eq!(String::from(cidr), "2001:db8::2/64");
        for bad in
            ["2001:db8::2", "2001:db8::2/129", "::/0", "ff02::1/8", "::1/128", "198.18.0.2/24"]
        {
            assert!(bad.parse::<CidrV6>().is_err(), "{bad}");
        }
        let mac = Mac::try_from("02:00:c6:12:00:fe".to_owned()).unwrap();
        assert_eq!(mac.0, [2, 0, 0xc6, 0x12, 0, 0xfe]);
        assert_eq!(String::from(mac), "02:00:c6:12:00:fe");
        for bad in [
            "",
            "02:00:c6:12:00",
            "02:00:c6:12:00:02:03",
            "01:00:5e:00:00:01",
            "2:0:0:0:0:0",
            "+2:00:00:00:00:00",
        ] {
            assert!(Mac::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
