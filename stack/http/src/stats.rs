//! Named counters of a server.

macro_rules! counters {
    ($(#[$outer:meta])* pub struct $name:ident { $(#[doc = $doc:literal] $field:ident,)+ }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $(#[doc = $doc] pub $field: u64,)+ }

        impl $name {
            /// Each counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field),)+].into_iter()
            }
        }
    };
}

counters! {
    /// What a server has done since it was made.
    pub struct HttpStats {
        /// Connections taken.
        connections,
        /// Connections answered with 503 because too many were open.
        connections_refused,
        /// Connections that ended with a reset or another error of the network.
        connections_broken,
        /// Requests answered, well or badly.
        requests,
        /// Responses 200 and 206.
        status_2xx,
        /// Responses 301 and 304.
        status_3xx,
        /// Responses that blame the client.
        status_4xx,
        /// Responses that blame the server.
        status_5xx,
        /// Bytes of bodies promised in responses.
        body_bytes,
        /// Requests that could not be understood.
        parse_errors,
        /// Requests that took too long to arrive.
        timeouts_header,
        /// Connections closed because no request came.
        timeouts_idle,
        /// Connections reset because the peer read too slowly.
        timeouts_send,
        /// Responses whose content came from the cache.
        cache_hits,
        /// Files brought into the cache.
        cache_fills,
        /// Files that could not be brought into the cache.
        cache_fills_failed,
        /// Requests that waited for a helper to look their name up.
        lookups_waited,
        /// Transfers that failed on the disk.
        disk_errors,
    }
}

impl HttpStats {
    pub(crate) fn count_status(&mut self, status: u16) {
        self.requests += 1;
        match status {
            200..=299 => self.status_2xx += 1,
            300..=399 => self.status_3xx += 1,
            400..=499 => self.status_4xx += 1,
            _ => self.status_5xx += 1,
        }
    }
}
