//! What a controller and a namespace say of themselves (NVMe Base Specification 2.0, 5.17.2; NVM
//! Command Set Specification 1.0, 4.1.5.1). Everything here comes from the device and is checked.

use millstream_buf::BLOCK_BYTES;

use super::access::PAGE_BYTES;

/// An answer of the device.
pub(crate) type Page = [u8; PAGE_BYTES];

fn le16(page: &Page, at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

fn le32(page: &Page, at: usize) -> u32 {
    u32::from(le16(page, at)) | u32::from(le16(page, at + 2)) << 16
}

fn le64(page: &Page, at: usize) -> u64 {
    u64::from(le32(page, at)) | u64::from(le32(page, at + 4)) << 32
}

/// Text of a fixed field: printable ASCII alone, without the blanks that fill it.
fn text(bytes: &[u8]) -> String {
    let shown = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { ' ' };
    bytes.iter().map(shown).collect::<String>().trim().to_owned()
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Model number.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware revision.
    pub firmware: String,
    /// Bytes that one command may transfer at most.
    pub transfer_bytes_max: usize,
    /// Abort commands that it takes at a time.
    pub aborts_max: usize,
    /// How long a shutdown takes, in microseconds; 0 if it does not say.
    pub shutdown_us: u32,
    /// The largest namespace number.
    pub namespaces_max: u32,
}

impl ControllerInfo {
    pub(crate) fn parse(page: &Page) -> Result<Self, &'static str> {
        // Required and largest entry sizes as powers of two.
        let fits = |sizes: u8, wanted: u8| sizes & 0xf <= wanted && wanted <= sizes >> 4;
        if !fits(page[512], 6) || !fits(page[513], 4) {
            return Err("its queue entries are not of 64 and 16 bytes");
        }
        // In units of the smallest page, which is ours; 0 is without limit.
        let transfer_bytes_max = match page[77] {
            0 => usize::MAX,
            // What is absurdly large is as good as no limit.
            shift => {
                PAGE_BYTES.saturating_mul(1usize.checked_shl(shift.into()).unwrap_or(usize::MAX))
            }
        };
        Ok(Self {
            serial: text(&page[4..24]),
            model: text(&page[24..64]),
            firmware: text(&page[64..72]),
            transfer_bytes_max,
            aborts_max: usize::from(page[258]) + 1,
            shutdown_us: le32(page, 88),
            namespaces_max: le32(page, 516),
        })
    }
}

/// A namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its number, from 1.
    pub nsid: u32,
    /// Logical blocks.
    pub blocks: u64,
    /// Bytes of a logical block: a power of two.
    pub block_bytes: usize,
}

impl NamespaceInfo {
    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks * self.block_bytes as u64
    }

    pub(crate) fn parse(nsid: u32, page: &Page) -> Result<Self, &'static str> {
        let blocks = le64(page, 0);
        if blocks == 0 {
            return Err("it is not active");
        }
        let flags = page[26];
        let index = usize::from(flags & 0xf | flags >> 1 & 0x30);
        if index > usize::from(page[25]) || index >= 64 {
            return Err("its format is not in its own list of formats");
        }
        let format = le32(page, 128 + 4 * index);
        if format & 0xffff != 0 {
            return Err("its blocks carry metadata; format it without");
        }
        if page[29] & 7 != 0 {
            return Err("it is formatted with protection information; format it without");
        }
        let shift = format >> 16 & 0xff;
        if !(9..=BLOCK_BYTES.ilog2()).contains(&shift) {
            return Err("its block size is not between 512 bytes and 16 KiB");
        }
        if blocks.leading_zeros() <= shift {
            return Err("its size cannot be");
        }
        Ok(Self { nsid, blocks, block_bytes: 1 << shift })
    }
}

/// The first namespaces of the list of active ones.
pub(crate) fn active(page: &Page) -> impl Iterator<Item = u32> {
    (0..PAGE_BYTES).step_by(4).map(|at| le32(page, at)).take_while(|&nsid| nsid != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn namespace(blocks: u64, shift: u8, metadata: u16, protection: u8) -> Box<Page> {
        let mut page = Box::new([0; PAGE_BYTES]);
        page[..8].copy_from_slice(&blocks.to_le_bytes());
        page[25] = 1;
        page[26] = 1;
        page[29] = protection;
        page[132..134].copy_from_slice(&metadata.to_le_bytes());
        page[134] = shift;
        page
    }

    #[test]
    fn namespaces_that_we_cannot_read_are_refused() {
        let parse = |page: Box<Page>| NamespaceInfo::parse(1, &page);
        let good = parse(namespace(1000, 12, 0, 0)).unwrap();
        assert_eq!((good.blocks, good.block_bytes, good.bytes()), (1000, 4096, 4_096_000));
        assert!(parse(namespace(0, 9, 0, 0)).unwrap_err().contains("not active"));
        assert!(parse(namespace(1000, 9, 8, 0)).unwrap_err().contains("metadata"));
        assert!(parse(namespace(1000, 9, 0, 1)).unwrap_err().contains("protection"));
        assert!(parse(namespace(1000, 8, 0, 0)).unwrap_err().contains("block size"));
        assert!(parse(namespace(1000, 15, 0, 0)).unwrap_err().contains("block size"));
        assert!(parse(namespace(1 << 55, 9, 0, 0)).unwrap_err().contains("size"));
        let mut page = namespace(1000, 9, 0, 0);
        page[26] = 2;
        assert!(parse(page).unwrap_err().contains("list"));
    }

    #[test]
    fn controllers_say_what_they_take() {
        let mut page = [b' '; PAGE_BYTES];
        page[24..28].copy_from_slice(b"mill");
        page[77] = 5;
        page[258] = 3;
        page[512] = 0x66;
        page[513] = 0x44;
        let info = ControllerInfo::parse(&page).unwrap();
        assert_eq!((info.model.as_str(), info.transfer_bytes_max), ("mill", 128 << 10));
        assert_eq!(info.aborts_max, 4);
        page[77] = 0;
        assert_eq!(ControllerInfo::parse(&page).unwrap().transfer_bytes_max, usize::MAX);
        page[512] = 0x77;
        assert!(ControllerInfo::parse(&page).is_err(), "entries of 128 bytes");
    }

    proptest! {
        #[test]
        fn no_answer_breaks_the_parsers(seed in prop::collection::vec(any::<u8>(), PAGE_BYTES)) {
            let page: Box<Page> = seed.into_boxed_slice().try_into().unwrap();
            if let Ok(info) = NamespaceInfo::parse(1, &page) {
                prop_assert!(info.bytes() / info.block_bytes as u64 == info.blocks);
            }
            if let Ok(info) = ControllerInfo::parse(&page) {
                prop_assert!(info.transfer_bytes_max >= PAGE_BYTES);
            }
            prop_assert!(active(&page).count() <= 1024);
        }
    }
}
