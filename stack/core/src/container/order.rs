//! Whose turn it is: strict bands of priority, then shares by stride scheduling (Waldspurger &
//! Weihl 1995), level by level of the tree, then limits.
//!
//! Each parent has a heap of the children with something to do. A child's place in it follows from
//! its band, the highest priority among what is to be done in it, and from its virtual time, which
//! passes the faster the smaller its share is. So a choice looks at one entry a level, and a charge
//! moves one entry a level.

use millstream_timer::Instant;

use super::tree::{Containers, NOBODY, Node, ROOT, WHOLE};

/// How much a child that comes back may owe for what it had before, in nanoseconds of its own time.
const DEBT_NANOS: u64 = 10_000_000;

/// What a limit saves up while it is not used, in nanoseconds of the core.
const CREDIT_NANOS: i64 = 2_000_000;

impl Containers {
    /// A leaf has something to do.
    pub fn activate(&mut self, leaf: u16, now: Instant) {
        let node = self.node_mut(leaf);
        if node.active {
            return;
        }
        node.active = true;
        self.wait_last(leaf, now);
        self.refresh(leaf);
    }

    /// A leaf has nothing to do any more.
    pub fn deactivate(&mut self, leaf: u16) {
        if !self.node(leaf).active {
            return;
        }
        self.node_mut(leaf).active = false;
        self.wait_no_more(leaf);
        self.refresh(leaf);
    }

    /// The leaf whose turn it is.
    #[inline]
    pub fn pick(&mut self, now: Instant) -> Option<u16> {
        if now >= self.resume_at {
            self.resume(now);
        }
        let mut at = ROOT;
        loop {
            let Some(&child) = self.node(at).heap.first() else {
                return (at != ROOT).then_some(at);
            };
            let (band, pass) = (self.node(child).band, self.node(child).pass);
            if let Some(served) = &mut self.node_mut(at).served {
                served[usize::from(band)] = pass;
            }
            at = child;
        }
    }

    /// The leaf that has waited longest, if that is since `since` or longer: so that no band starves
    /// the clocking of another one's connections.
    pub fn overdue(&self, since: Instant) -> Option<u16> {
        let node = self.nodes.get(usize::from(self.first))?;
        (node.waits_since <= since && !self.path(self.first).any(|at| self.node(at).throttled))
            .then_some(self.first)
    }

    /// A leaf has had a turn: others have waited longer.
    pub fn had_turn(&mut self, leaf: u16, now: Instant) {
        if self.node(leaf).active {
            self.wait_no_more(leaf);
            self.wait_last(leaf, now);
        }
    }

    /// Whether something of a higher priority than the leaf's has something to do.
    #[inline]
    pub fn is_outranked(&self, leaf: u16) -> bool {
        let top = self.node(ROOT).heap.first();
        top.is_some_and(|&top| self.node(top).band > self.node(leaf).priority)
    }

    /// When a container that pauses may go on.
    pub fn next_deadline(&self) -> Instant {
        self.resume_at
    }

    fn wait_last(&mut self, leaf: u16, now: Instant) {
        let last = self.last;
        let node = self.node_mut(leaf);
        (node.previous, node.next, node.waits_since) = (last, NOBODY, now);
        match self.nodes.get_mut(usize::from(last)) {
            Some(node) => node.next = leaf,
            None => self.first = leaf,
        }
        self.last = leaf;
    }

    fn wait_no_more(&mut self, leaf: u16) {
        let (previous, next) = (self.node(leaf).previous, self.node(leaf).next);
        match self.nodes.get_mut(usize::from(previous)) {
            Some(node) => node.next = next,
            None => self.first = next,
        }
        match self.nodes.get_mut(usize::from(next)) {
            Some(node) => node.previous = previous,
            None => self.last = previous,
        }
    }

    /// Time has been used by a container: its virtual time passes, and its limit shrinks.
    pub(super) fn advance(&mut self, at: u16, nanos: u64, now: Instant) {
        let node = self.node_mut(at);
        node.pass = node.pass.wrapping_add(nanos.wrapping_mul(node.stride));
        if let Some(limit) = &mut node.limit {
            let gained =
                now.nanos_since(limit.since).saturating_mul(limit.share.into()) / u64::from(WHOLE);
            let gained = gained.min(CREDIT_NANOS as u64) as i64;
            limit.since = now;
            limit.credit_nanos = (limit.credit_nanos + gained).min(CREDIT_NANOS);
            limit.credit_nanos -= nanos as i64;
            if limit.credit_nanos < 0 && !node.throttled {
                let wait =
                    limit.credit_nanos.unsigned_abs() * u64::from(WHOLE) / u64::from(limit.share);
                node.throttled = true;
                node.usage.throttled += 1;
                self.resume_at = self.resume_at.min(now.plus_nanos(wait + 1));
                self.throttled.push(at);
                self.refresh(at);
                return;
            }
        }
        if node.place != NOBODY {
            let (parent, place) = (node.parent, usize::from(node.place));
            self.sift_down(parent, place);
        }
    }

    /// Lets those go on whose limits have grown back.
    #[cold]
    fn resume(&mut self, now: Instant) {
        let mut next = Instant::FAR_FUTURE;
        let mut i = 0;
        while let Some(&at) = self.throttled.get(i) {
            let node = self.node_mut(at);
            let wait = node.limit.as_mut().map_or(0, |limit| {
                let gained = now.nanos_since(limit.since).saturating_mul(limit.share.into())
                    / u64::from(WHOLE);
                limit.since = now;
                limit.credit_nanos =
                    limit.credit_nanos.saturating_add_unsigned(gained).min(CREDIT_NANOS);
                let owed = limit.credit_nanos.min(0).unsigned_abs();
                owed.saturating_mul(WHOLE.into()) / u64::from(limit.share)
            });
            if wait == 0 {
                node.throttled = false;
                self.throttled.swap_remove(i);
                self.refresh(at);
            } else {
                next = next.min(now.plus_nanos(wait + 1));
                i += 1;
            }
        }
        self.resume_at = next;
    }

    /// Puts a container into its parent's heap or takes it out, as it has something to do or not, and
    /// those above it likewise.
    pub(super) fn refresh(&mut self, mut at: u16) {
        while at != ROOT {
            let node = self.node(at);
            let band = match node.heap.first() {
                _ if node.throttled => None,
                Some(&child) => Some(self.node(child).band),
                None => node.active.then_some(node.priority),
            };
            match (node.place, band) {
                (NOBODY, None) => return,
                (_, None) => self.leave_heap(at),
                (NOBODY, Some(band)) => {
                    self.join(at, band);
                    let parent = self.node(at).parent;
                    let place = self.node(parent).heap.len();
                    self.node_mut(parent).heap.push(at);
                    self.node_mut(at).place = place as u16;
                    self.sift_up(parent, place);
                }
                (place, Some(band)) if band != node.band => {
                    self.join(at, band);
                    let parent = self.node(at).parent;
                    let place = self.sift_up(parent, usize::from(place));
                    self.sift_down(parent, place);
                }
                _ => return,
            }
            at = self.node(at).parent;
        }
    }

    /// A child takes part in a band: it gets nothing for the time that it was away, and owes no more
    /// than it could have had in a while.
    fn join(&mut self, at: u16, band: u8) {
        let parent = self.node(self.node(at).parent);
        let reached = parent.served.as_ref().map_or(0, |served| served[usize::from(band)]);
        let node = self.node_mut(at);
        let debt = (node.pass.wrapping_sub(reached) as i64).max(0) as u64;
        node.pass = reached.wrapping_add(debt.min(DEBT_NANOS * node.stride));
        node.band = band;
    }

    pub(super) fn leave_heap(&mut self, at: u16) {
        let (parent, place) = (self.node(at).parent, self.node(at).place);
        if place == NOBODY {
            return;
        }
        self.node_mut(at).place = NOBODY;
        let place = usize::from(place);
        self.node_mut(parent).heap.swap_remove(place);
        if let Some(&moved) = self.node(parent).heap.get(place) {
            self.node_mut(moved).place = place as u16;
            let place = self.sift_up(parent, place);
            self.sift_down(parent, place);
        }
    }

    /// Whether `a` goes before `b`.
    fn precedes(a: &Node, b: &Node) -> bool {
        if a.band != b.band {
            return a.band > b.band;
        }
        (a.pass.wrapping_sub(b.pass) as i64) < 0
    }

    fn goes_before(&self, parent: u16, a: usize, b: usize) -> bool {
        let heap = &self.node(parent).heap;
        Self::precedes(self.node(heap[a]), self.node(heap[b]))
    }

    fn swap(&mut self, parent: u16, a: usize, b: usize) {
        let heap = &mut self.node_mut(parent).heap;
        heap.swap(a, b);
        let (at_a, at_b) = (heap[a], heap[b]);
        self.node_mut(at_a).place = a as u16;
        self.node_mut(at_b).place = b as u16;
    }

    fn sift_up(&mut self, parent: u16, mut place: usize) -> usize {
        while place > 0 {
            let above = (place - 1) / 2;
            if !self.goes_before(parent, place, above) {
                break;
            }
            self.swap(parent, place, above);
            place = above;
        }
        place
    }

    fn sift_down(&mut self, parent: u16, mut place: usize) {
        let len = self.node(parent).heap.len();
        loop {
            let mut first = place;
            for below in [2 * place + 1, 2 * place + 2] {
                if below < len && self.goes_before(parent, below, first) {
                    first = below;
                }
            }
            if first == place {
                return;
            }
            self.swap(parent, place, first);
            place = first;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ContainerSpec, Work};
    use super::*;
    use proptest::prelude::*;

    fn make(specs: &[(&str, Option<&str>, u8, f64)]) -> (Containers, Vec<u16>) {
        let specs: Vec<_> = specs
            .iter()
            .map(|(name, parent, priority, share)| ContainerSpec {
                parent: parent.map(str::to_owned),
                priority: *priority,
                share_percent: Some(*share),
                ..ContainerSpec::new(*name)
            })
            .collect();
        let mut all = Containers::new();
        let ids = all.create_all(&specs).unwrap();
        (all, ids.iter().map(|id| id.index).collect())
    }

    /// Runs all that are active for `nanos` in slices that `slice` says; returns the time of each.
    fn run(all: &mut Containers, nanos: u64, mut slice: impl FnMut(u16) -> u64) -> Vec<u64> {
        let before: Vec<_> = all.nodes.iter().map(|node| node.usage.cpu_nanos).collect();
        let mut now = Instant::ZERO;
        while now.as_nanos() < nanos {
            let leaf = all.pick(now).unwrap();
            let used = slice(leaf);
            now = now.plus_nanos(used);
            all.charge(leaf, used, Work::Task, now);
            all.had_turn(leaf, now);
        }
        all.nodes.iter().zip(before).map(|(node, before)| node.usage.cpu_nanos - before).collect()
    }

    #[test]
    fn a_higher_band_goes_first() {
        let (mut all, ids) = make(&[("low", None, 10, 90.0), ("high", None, 20, 10.0)]);
        let now = Instant::ZERO;
        all.activate(ids[0], now);
        assert_eq!(all.pick(now), Some(ids[0]));
        assert!(!all.is_outranked(ids[0]));
        all.activate(ids[1], now);
        assert!(all.is_outranked(ids[0]));
        for _ in 0..100 {
            assert_eq!(all.pick(now), Some(ids[1]));
            all.charge(ids[1], 1000, Work::Task, now);
        }
        all.deactivate(ids[1]);
        assert_eq!(all.pick(now), Some(ids[0]));
        all.deactivate(ids[0]);
        assert_eq!(all.pick(now), None);
    }

    /// What a child of a part leaves goes to its sibling, not to all.
    #[test]
    fn a_part_is_divided_again() {
        let tree = [
            ("a", None, 32, 70.0),
            ("a1", Some("a"), 32, 50.0),
            ("a2", Some("a"), 32, 50.0),
            ("b", None, 32, 30.0),
        ];
        let (mut all, ids) = make(&tree);
        for leaf in [ids[1], ids[2], ids[3]] {
            all.activate(leaf, Instant::ZERO);
        }
        let used = run(&mut all, 100_000_000, |_| 20_000);
        let percent = |used: &[u64], leaf: u16| used[usize::from(leaf)] as f64 / 1e6;
        for (leaf, expected) in [(ids[1], 35.0), (ids[2], 35.0), (ids[3], 30.0)] {
            assert!((percent(&used, leaf) - expected).abs() < 0.1, "{used:?}");
        }
        all.deactivate(ids[2]);
        let used = run(&mut all, 100_000_000, |_| 20_000);
        assert!((percent(&used, ids[1]) - 70.0).abs() < 0.1, "{used:?}");
    }

    /// Who was away gets its share from then on, not what it missed.
    #[test]
    fn nothing_is_saved_up() {
        let (mut all, ids) = make(&[("a", None, 32, 50.0), ("b", None, 32, 50.0)]);
        all.activate(ids[0], Instant::ZERO);
        run(&mut all, 1_000_000_000, |_| 10_000);
        all.activate(ids[1], Instant::ZERO);
        let used = run(&mut all, 1_000_000, |_| 10_000);
        assert!(used[usize::from(ids[0])] >= 480_000, "{used:?}");
    }

    #[test]
    fn a_limit_holds_even_alone() {
        let mut all = Containers::new();
        let spec = ContainerSpec { cpu_limit_percent: Some(30.0), ..ContainerSpec::new("capped") };
        let leaf = all.create(&spec).unwrap().index;
        all.activate(leaf, Instant::ZERO);
        let mut now = Instant::ZERO;
        let mut used = 0;
        while now.as_nanos() < 1_000_000_000 {
            match all.pick(now) {
                Some(at) => {
                    assert_eq!(at, leaf);
                    used += 10_000;
                    now = now.plus_nanos(10_000);
                    all.charge(leaf, 10_000, Work::Task, now);
                }
                None => {
                    assert!(all.next_deadline() > now && all.overdue(now).is_none());
                    now = all.next_deadline();
                }
            }
        }
        assert!((295_000_000..=305_000_000).contains(&used), "{used}");
        assert!(all.usage(leaf).throttled > 100);
    }

    #[test]
    fn who_has_waited_longest_is_known() {
        let (mut all, ids) = make(&[("a", None, 10, 10.0), ("b", None, 11, 10.0)]);
        let at = Instant::from_micros;
        all.activate(ids[0], at(1));
        all.activate(ids[1], at(2));
        assert_eq!(all.overdue(at(0)), None);
        assert_eq!(all.overdue(at(5)), Some(ids[0]));
        all.had_turn(ids[0], at(6));
        assert_eq!(all.overdue(at(5)), Some(ids[1]));
        all.deactivate(ids[1]);
        assert_eq!((all.overdue(at(5)), all.overdue(at(6))), (None, Some(ids[0])));
    }

    proptest! {
        /// Over 100 ms each of those that always have work gets its share within half a percent of
        /// the core, whatever the lengths of the slices below 50 us.
        #[test]
        fn shares_are_kept(
            weights in prop::collection::vec(1u32..100, 2..8),
            seed in any::<u64>(),
        ) {
            let sum: u32 = weights.iter().sum();
            let specs: Vec<_> = weights.iter().enumerate().map(|(i, weight)| ContainerSpec {
                share_percent: Some((f64::from(*weight) * 9_900.0 / f64::from(sum)).floor().max(1.0) / 100.0),
                ..ContainerSpec::new(format!("c{i}"))
            }).collect();
            let mut all = Containers::new();
            let ids = all.create_all(&specs).unwrap();
            ids.iter().for_each(|id| all.activate(id.index, Instant::ZERO));
            let mut x = seed | 1;
            let used = run(&mut all, 100_000_000, |_| {
                x ^= x << 13; x ^= x >> 7; x ^= x << 17;
                1 + x % 50_000
            });
            let given: f64 = specs.iter().filter_map(|spec| spec.share_percent).sum();
            let all_used: u64 = ids.iter().map(|id| used[usize::from(id.index)]).sum();
            for (id, spec) in ids.iter().zip(&specs) {
                let got = used[usize::from(id.index)] as f64 * 100.0 / all_used as f64;
                let due = spec.share_percent.unwrap() * 100.0 / given;
                prop_assert!((got - due).abs() <= 0.5, "{got} for {due}");
            }
        }

        /// The heaps choose as a search through all would, whatever comes and goes.
        #[test]
        fn agrees_with_a_search(ops in prop::collection::vec((0usize..6, 0u8..4, 1u64..1000), 1..200)) {
            let tree = [
                ("a", None, 32, 40.0), ("b", None, 32, 30.0), ("c", None, 40, 20.0),
                ("a1", Some("a"), 32, 60.0), ("a2", Some("a"), 40, 20.0), ("b1", Some("b"), 10, 10.0),
                ("b2", Some("b"), 32, 10.0),
            ];
            let (mut all, ids) = make(&tree);
            let leaves = [ids[2], ids[3], ids[4], ids[5], ids[6], super::super::DEFAULT];
            for (which, what, nanos) in ops {
                let leaf = leaves[which];
                match what {
                    0 | 1 => all.activate(leaf, Instant::ZERO),
                    2 => all.deactivate(leaf),
                    _ => all.charge(leaf, nanos, Work::Task, Instant::ZERO),
                }
                let highest = leaves.iter().filter(|leaf| all.node(**leaf).active)
                    .map(|leaf| all.priority(*leaf)).max();
                let picked = all.pick(Instant::ZERO);
                prop_assert_eq!(picked.map(|leaf| all.priority(leaf)), highest);
                for (index, node) in all.nodes.iter().enumerate() {
                    for &child in &node.heap {
                        prop_assert_eq!(all.node(child).parent, index as u16);
                    }
                    if let Some(&top) = node.heap.first() {
                        for &child in &node.heap {
                            prop_assert!(!Containers::precedes(all.node(child), all.node(top)));
                        }
                    }
                }
                let waiting = {
                    let mut list = Vec::new();
                    let mut at = all.first;
                    while let Some(node) = all.nodes.get(usize::from(at)) { list.push(at); at = node.next; }
                    list.sort_unstable();
                    list
                };
                let mut active: Vec<_> = leaves.iter().copied().filter(|l| all.node(*l).active).collect();
                active.sort_unstable();
                prop_assert_eq!(waiting, active);
            }
        }
    }
}
