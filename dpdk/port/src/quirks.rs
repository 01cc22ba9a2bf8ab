//! What drivers do beside, or against, what they advertise. All of it is here.

/// Where the payload of a sent frame may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadMemory {
    /// Anywhere: the CPU reads it.
    Any,
    /// In memory registered with the device, which reads it itself; else it is copied.
    Registered,
    /// In DPDK's own memory only; else it is copied.
    OwnOnly,
}

/// Whether a frame may be a chain of mbufs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chains {
    /// As the driver says (`RTE_ETH_TX_OFFLOAD_MULTI_SEGS`).
    AsAdvertised,
    /// Yes, whatever it says.
    Yes,
    /// No.
    No,
}

/// The facts about one driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quirks {
    /// The driver's name in DPDK.
    pub driver: &'static str,
    /// Checksums and segmentation are emulated by the CPU and not used: our own are cheaper, since
    /// they remember what was summed, and right. net_tap's sum is wrong when a segment other than
    /// the last has an odd length (`rte_raw_cksum_mbuf`, seen in 22.11 and 24.11); its segmentation
    /// drops frames whose segment size plus headers comes near the MTU.
    pub emulates_offloads: bool,
    /// It copies the payload when it sends.
    pub copies_payload: bool,
    /// Chains of mbufs.
    pub chains: Chains,
    /// It passes frames of any length, whatever MTU it admits to.
    pub any_length: bool,
    /// The stack takes an address of its own: the driver's is also the kernel's end of the wire
    /// (net_tap), or there is none.
    pub own_mac: bool,
    /// It must be made promiscuous to get frames for another address than the driver's.
    pub promiscuous: bool,
    /// It counts a frame as an error each time it does not take it, though it is kept and offered
    /// again: its count of transmit errors means nothing.
    pub errors_are_retries: bool,
    /// Where the payload may lie.
    pub memory: PayloadMemory,
}

/// What holds for drivers without an entry: network cards.
const CARD: Quirks = Quirks {
    driver: "",
    emulates_offloads: false,
    copies_payload: false,
    chains: Chains::AsAdvertised,
    any_length: false,
    own_mac: false,
    promiscuous: true,
    errors_are_retries: false,
    memory: PayloadMemory::Registered,
};

/// What holds for most drivers that the CPU plays.
const SOFTWARE: Quirks = Quirks {
    emulates_offloads: true,
    copies_payload: true,
    promiscuous: false,
    memory: PayloadMemory::Any,
    ..CARD
};

const TABLE: [Quirks; 9] = [
    Quirks { driver: "net_tap", own_mac: true, errors_are_retries: true, ..SOFTWARE },
    Quirks { driver: "net_af_packet", promiscuous: true, ..SOFTWARE },
    // A chain is refused; where the kernel shares the mbufs' memory, an external buffer would make
    // a descriptor that points elsewhere.
    Quirks { driver: "net_af_xdp", promiscuous: true, chains: Chains::No, ..SOFTWARE },
    Quirks { driver: "net_memif", any_length: true, ..SOFTWARE },
    Quirks {
        driver: "net_ring",
        copies_payload: false,
        chains: Chains::Yes,
        any_length: true,
        own_mac: true,
        ..SOFTWARE
    },
    // It admits to no chains, yet all it does with a frame is to free it, chain or not.
    Quirks {
        driver: "net_null",
        copies_payload: false,
        chains: Chains::Yes,
        any_length: true,
        own_mac: true,
        ..SOFTWARE
    },
    Quirks { driver: "net_pcap", own_mac: true, ..SOFTWARE },
    // The peer maps DPDK's memory alone. Offloads are the peer's, as on a card.
    Quirks {
        driver: "net_virtio_user",
        copies_payload: true,
        memory: PayloadMemory::OwnOnly,
        ..CARD
    },
    Quirks { driver: "net_vhost", ..SOFTWARE },
];

/// The facts about `driver`.
pub fn of(driver: &str) -> Quirks {
    TABLE.iter().find(|quirks| quirks.driver == driver).copied().unwrap_or(CARD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulated_offloads_are_never_used() {
        for driver in ["net_tap", "net_af_packet", "net_memif", "net_ring", "net_null"] {
            assert!(of(driver).emulates_offloads, "{driver}");
        }
    }

    #[test]
    fn a_card_is_trusted_and_wants_registered_memory() {
        let card = of("net_e1000_igb");
        assert!(!card.emulates_offloads && !card.copies_payload);
        assert_eq!(card.memory, PayloadMemory::Registered);
        assert_eq!(of("net_virtio_user").memory, PayloadMemory::OwnOnly);
    }

    #[test]
    fn tap_shares_its_address_with_the_kernel() {
        assert!(of("net_tap").own_mac);
        assert!(!of("net_af_packet").own_mac);
        assert_eq!(of("net_af_xdp").chains, Chains::No);
    }
}
