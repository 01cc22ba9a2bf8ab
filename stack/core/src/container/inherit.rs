//! Priority inheritance (Sha, Rajkumar & Lehoczky 1990, as a multithreaded server wants it): who holds
//! what a more important task waits for runs as that task would, until it has given it up.
//!
//! A task waits for one other at a time. What a holder inherits it passes on to whom it waits for
//! itself. Whoever runs in another's stead is also charged to it: the work is done for that one.

/// No task.
const NOBODY: u32 = u32::MAX;

/// In whose container a task runs, and how important that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub container: u16,
    pub priority: u8,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    /// Its own.
    base: Standing,
    /// With what it inherits.
    effective: Standing,
    /// For whom it waits.
    waits_for: u32,
    /// Those who wait for it are a list.
    first_waiter: u32,
    next: u32,
    previous: u32,
}

/// Who waits for whom, by number of task.
#[derive(Debug)]
pub(crate) struct Inheritance {
    nodes: Vec<Node>,
    base: Standing,
}

impl Inheritance {
    /// Tasks below `tasks` may be named; all stand as `base` says.
    pub fn new(tasks: usize, base: Standing) -> Self {
        let node = Node {
            base,
            effective: base,
            waits_for: NOBODY,
            first_waiter: NOBODY,
            next: NOBODY,
            previous: NOBODY,
        };
        Self { nodes: vec![node; tasks], base }
    }

    /// Without tasks: a place holder.
    pub fn none() -> Self {
        let base = Standing { container: super::DEFAULT, priority: super::PRIORITY_DEFAULT };
        Self { nodes: Vec::new(), base }
    }

    fn node(&self, task: u32) -> Option<&Node> {
        self.nodes.get(task as usize)
    }

    fn node_mut(&mut self, task: u32) -> Option<&mut Node> {
        self.nodes.get_mut(task as usize)
    }

    /// How a task stands, with what it inherits.
    pub fn effective(&self, task: u32) -> Standing {
        self.node(task).map_or(self.base, |node| node.effective)
    }

    /// How it stands by itself.
    pub fn own(&self, task: u32) -> Standing {
        self.node(task).map_or(self.base, |node| node.base)
    }

    /// A task stands so by itself from now on. `changed` is told of all whose standing changes.
    pub fn set_own(&mut self, task: u32, base: Standing, changed: &mut dyn FnMut(u32, Standing)) {
        if let Some(node) = self.node_mut(task) {
            node.base = base;
            self.renew(task, changed);
        }
    }

    /// `waiter` waits for `holder`. `false`: it does not, since `holder` waits for it already, or
    /// one of them is no task.
    pub fn wait(
        &mut self,
        waiter: u32,
        holder: u32,
        changed: &mut dyn FnMut(u32, Standing),
    ) -> bool {
        if self.node(waiter).is_none() || self.node(holder).is_none() {
            return false;
        }
        if self.node(waiter).is_some_and(|node| node.waits_for == holder) {
            return true;
        }
        let mut at = holder;
        while let Some(node) = self.node(at) {
            if at == waiter {
                return false;
            }
            at = node.waits_for;
        }
        self.end_wait(waiter, changed);
        let first = self.nodes[holder as usize].first_waiter;
        let node = &mut self.nodes[waiter as usize];
        (node.waits_for, node.next, node.previous) = (holder, first, NOBODY);
        if let Some(next) = self.node_mut(first) {
            next.previous = waiter;
        }
        self.nodes[holder as usize].first_waiter = waiter;
        self.renew(holder, changed);
        true
    }

    /// A task waits no more.
    pub fn end_wait(&mut self, waiter: u32, changed: &mut dyn FnMut(u32, Standing)) {
        let Some(node) = self.node_mut(waiter) else { return };
        let (holder, next, previous) = (node.waits_for, node.next, node.previous);
        if holder == NOBODY {
            return;
        }
        (node.waits_for, node.next, node.previous) = (NOBODY, NOBODY, NOBODY);
        if let Some(node) = self.node_mut(next) {
            node.previous = previous;
        }
        match self.node_mut(previous) {
            Some(node) => node.next = next,
            None => {
                if let Some(node) = self.node_mut(holder) {
                    node.first_waiter = next;
                }
            }
        }
        self.renew(holder, changed);
    }

    /// A task is no more: it waits for nobody, and nobody waits for it. Its number stands as at first.
    pub fn forget(&mut self, task: u32, changed: &mut dyn FnMut(u32, Standing)) {
        self.end_wait(task, changed);
        while let Some(waiter) = self.node(task).map(|node| node.first_waiter)
            && waiter != NOBODY
        {
            self.end_wait(waiter, changed);
        }
        let base = self.base;
        if let Some(node) = self.node_mut(task) {
            (node.base, node.effective) = (base, base);
        }
    }

    /// Finds anew how a task stands, and those for whom it waits.
    fn renew(&mut self, task: u32, changed: &mut dyn FnMut(u32, Standing)) {
        let mut at = task;
        while let Some(node) = self.node(at) {
            let mut best = node.base;
            let mut waiter = node.first_waiter;
            while let Some(other) = self.node(waiter) {
                if other.effective.priority > best.priority {
                    best = other.effective;
                }
                waiter = other.next;
            }
            let (before, next) = (node.effective, node.waits_for);
            if before == best {
                return;
            }
            self.nodes[at as usize].effective = best;
            changed(at, best);
            at = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn standing(priority: u8) -> Standing {
        Standing { container: u16::from(priority), priority }
    }

    fn tasks(priorities: &[u8]) -> Inheritance {
        let mut tasks = Inheritance::new(priorities.len(), standing(0));
        for (task, priority) in priorities.iter().enumerate() {
            tasks.set_own(task as u32, standing(*priority), &mut |_, _| {});
        }
        tasks
    }

    #[test]
    fn it_goes_through_and_is_given_back() {
        // 0 waits for 1, 1 for 2: all run as 0 does. 3 is in between and changes nothing.
        let mut all = tasks(&[60, 20, 10, 40]);
        let mut changes = Vec::new();
        assert!(all.wait(1, 2, &mut |task, to| changes.push((task, to.priority))));
        assert!(all.wait(0, 1, &mut |task, to| changes.push((task, to.priority))));
        assert_eq!(changes, [(2, 20), (1, 60), (2, 60)]);
        assert_eq!(all.effective(2).container, 60);
        assert!(all.wait(3, 2, &mut |_, _| panic!("nothing changes")));
        // 1 has its reply, and passes nothing on any more.
        all.end_wait(1, &mut |_, _| {});
        assert_eq!((all.effective(2).priority, all.effective(1).priority), (40, 60));
        all.end_wait(0, &mut |_, _| {});
        all.end_wait(3, &mut |_, _| {});
        assert_eq!((0..4).map(|t| all.effective(t).priority).collect::<Vec<_>>(), [60, 20, 10, 40]);
    }

    #[test]
    fn a_circle_is_refused_and_a_task_that_ends_is_forgotten() {
        let mut all = tasks(&[60, 20, 10]);
        assert!(all.wait(0, 1, &mut |_, _| {}) && all.wait(1, 2, &mut |_, _| {}));
        assert!(!all.wait(2, 0, &mut |_, _| {}) && !all.wait(0, 0, &mut |_, _| {}));
        assert!(!all.wait(7, 0, &mut |_, _| {}));
        all.forget(1, &mut |_, _| {});
        assert_eq!((all.effective(1), all.effective(2)), (standing(0), standing(10)));
        all.end_wait(0, &mut |_, _| panic!("it waits for nobody"));
    }

    proptest! {
        /// Everybody stands as the highest of all that wait for it, directly or not.
        #[test]
        fn agrees_with_the_definition(
            priorities in prop::collection::vec(0u8..64, 8),
            ops in prop::collection::vec((0u32..8, 0u32..8, 0u8..4), 0..60),
        ) {
            let mut all = tasks(&priorities);
            let mut base = priorities;
            let mut waits: [Option<u32>; 8] = [None; 8];
            for (a, b, what) in ops {
                match what {
                    0 | 1 => {
                        let mut at = Some(b);
                        while let Some(task) = at && task != a { at = waits[task as usize]; }
                        let circle = at == Some(a);
                        prop_assert_eq!(all.wait(a, b, &mut |_, _| {}), !circle);
                        if !circle { waits[a as usize] = Some(b); }
                    }
                    2 => { all.end_wait(a, &mut |_, _| {}); waits[a as usize] = None; }
                    _ => {
                        base[a as usize] = (b * 7) as u8;
                        all.set_own(a, standing((b * 7) as u8), &mut |_, _| {});
                    }
                }
                for task in 0..8u32 {
                    let best = (0..8u32).filter(|&other| {
                        let mut at = Some(other);
                        while let Some(t) = at && t != task { at = waits[t as usize]; }
                        at == Some(task)
                    }).map(|other| base[other as usize]).max().unwrap();
                    prop_assert_eq!(all.effective(task).priority, best);
                }
            }
        }
    }
}
