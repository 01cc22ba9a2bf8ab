//! What is to be done, container by container, while there are several or a policy asks for it.
//!
//! Receivers with packets, timers that are due and tasks that want to run stand in the list of their
//! owner; [`Containers`](crate::container::Containers) says whose list is next.

use std::collections::BTreeMap;

use crate::container::{ContainerUsage, Containers, DEFAULT, Inheritance, SYSTEM, Standing};
use crate::policy::Disposition;

const NONE: u32 = u32::MAX;
/// In no list.
const NO_LEAF: u16 = u16::MAX;

/// Something to be done that is no task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A connection's channel has something.
    Conn(u32),
    /// A connection's timer is due.
    Timer(u32),
    /// The application wants to be told that a connection's channel has something.
    Signal(u32),
    /// A listener's channel has something.
    Listener(u16),
    /// The channel of ARP, ICMP and strays has something.
    Proxy,
}

/// What comes next in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Item(Item),
    Task(u32),
}

struct Entry {
    item: Item,
    next: u32,
}

#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

impl Default for List {
    fn default() -> Self {
        Self { head: NONE, tail: NONE }
    }
}

/// The lists of one container.
#[derive(Clone, Copy, Default)]
struct Lists {
    protocol: List,
    tasks: List,
    /// Protocol work was last: they take turns.
    task_next: bool,
}

#[derive(Clone, Copy)]
struct TaskLink {
    next: u32,
    previous: u32,
    leaf: u16,
}

/// Whose a connection is, if that was said of it, and what it holds.
#[derive(Clone, Copy)]
struct Account {
    owner: u16,
    held_bytes: u32,
}

/// The lists of all containers.
pub(crate) struct Agenda {
    entries: Vec<Entry>,
    free: u32,
    lists: Vec<Lists>,
    links: Vec<TaskLink>,
    accounts: Vec<Account>,
    /// How tasks stand, with what they inherit.
    pub standings: Inheritance,
    /// Of connections whose disposition is not the usual one.
    pub dispositions: BTreeMap<u32, Disposition>,
    /// Entries in all lists.
    pub queued: usize,
}

impl Agenda {
    /// Lists for so many connections and tasks. All memory is taken here.
    pub fn new(connections: usize, tasks: usize, containers: &Containers) -> Self {
        let base = Standing { container: DEFAULT, priority: containers.priority(DEFAULT) };
        // A connection stands there at most once for its channel and once for its timer.
        let room = 2 * connections + 1024;
        // The root task has a place beyond the bound.
        let tasks = tasks + 2;
        Self {
            entries: Vec::with_capacity(room),
            free: NONE,
            lists: Vec::with_capacity(16),
            links: vec![TaskLink { next: NONE, previous: NONE, leaf: NO_LEAF }; tasks],
            accounts: vec![Account { owner: NO_LEAF, held_bytes: 0 }; connections],
            standings: Inheritance::new(tasks, base),
            dispositions: BTreeMap::new(),
            queued: 0,
        }
    }

    /// There may be containers up to this index: their lists' memory is taken.
    pub fn make_room_for(&mut self, index: u16) {
        if self.lists.len() <= usize::from(index) {
            self.lists.resize(usize::from(index) + 1, Lists::default());
        }
    }

    /// Adds work to a leaf's list. Returns whether there was none in it.
    pub fn push(&mut self, leaf: u16, item: Item) -> bool {
        let entry = Entry { item, next: NONE };
        let at = match self.entries.get_mut(self.free as usize) {
            Some(free) => {
                let at = self.free;
                self.free = free.next;
                *free = entry;
                at
            }
            None => {
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
        };
        let was_empty = self.is_empty(leaf);
        let Some(lists) = self.lists.get_mut(usize::from(leaf)) else { return false };
        let list = &mut lists.protocol;
        match self.entries.get_mut(list.tail as usize) {
            Some(tail) => tail.next = at,
            None => list.head = at,
        }
        list.tail = at;
        self.queued += 1;
        was_empty
    }

    /// A task wants to run. Returns its leaf if there was nothing in its list.
    pub fn push_task(&mut self, task: u32) -> Option<u16> {
        let leaf = self.standings.effective(task).container;
        let was_empty = self.is_empty(leaf);
        self.link_task(leaf, task);
        was_empty.then_some(leaf)
    }

    fn link_task(&mut self, leaf: u16, task: u32) {
        let Some(lists) = self.lists.get_mut(usize::from(leaf)) else { return };
        let last = lists.tasks.tail;
        let Some(link) = self.links.get_mut(task as usize) else { return };
        if link.leaf != NO_LEAF {
            return;
        }
        *link = TaskLink { next: NONE, previous: last, leaf };
        lists.tasks.tail = task;
        match self.links.get_mut(last as usize) {
            Some(link) => link.next = task,
            None => lists.tasks.head = task,
        }
        self.queued += 1;
    }

    fn unlink_task(&mut self, task: u32) {
        let Some(link) = self.links.get_mut(task as usize) else { return };
        let TaskLink { next, previous, leaf } = *link;
        link.leaf = NO_LEAF;
        let Some(lists) = self.lists.get_mut(usize::from(leaf)) else { return };
        match self.links.get_mut(previous as usize) {
            Some(link) => link.next = next,
            None => lists.tasks.head = next,
        }
        match self.links.get_mut(next as usize) {
            Some(link) => link.previous = previous,
            None => lists.tasks.tail = previous,
        }
        self.queued -= 1;
    }

    /// A task stands otherwise from now on: if it waits for its turn, it does so in the other list.
    /// Returns the leaves whose lists it left and joined.
    pub fn move_task(&mut self, task: u32, to: u16) -> Option<(u16, u16)> {
        let from = self.links.get(task as usize)?.leaf;
        if from == NO_LEAF || from == to {
            return None;
        }
        self.unlink_task(task);
        self.link_task(to, task);
        Some((from, to))
    }

    /// Whether a leaf has nothing to do.
    pub fn is_empty(&self, leaf: u16) -> bool {
        let lists = self.lists.get(usize::from(leaf));
        lists.is_none_or(|lists| lists.protocol.head == NONE && lists.tasks.head == NONE)
    }

    /// The next protocol work of a leaf.
    pub fn pop_item(&mut self, leaf: u16) -> Option<Item> {
        let list = &mut self.lists.get_mut(usize::from(leaf))?.protocol;
        let at = list.head;
        let entry = self.entries.get_mut(at as usize)?;
        list.head = entry.next;
        if list.head == NONE {
            list.tail = NONE;
        }
        entry.next = self.free;
        self.free = at;
        self.queued -= 1;
        Some(entry.item)
    }

    fn pop_task(&mut self, leaf: u16) -> Option<u32> {
        let task = self.lists.get(usize::from(leaf))?.tasks.head;
        if task == NONE {
            return None;
        }
        self.unlink_task(task);
        Some(task)
    }

    /// The next that a leaf has to do: protocol work and tasks take turns, so that neither starves.
    pub fn pop(&mut self, leaf: u16) -> Option<Next> {
        let lists = self.lists.get_mut(usize::from(leaf))?;
        let task_first = std::mem::take(&mut lists.task_next);
        if task_first && let Some(task) = self.pop_task(leaf) {
            return Some(Next::Task(task));
        }
        if let Some(item) = self.pop_item(leaf) {
            self.lists[usize::from(leaf)].task_next = true;
            return Some(Next::Item(item));
        }
        self.pop_task(leaf).map(Next::Task)
    }

    /// All leaves with something to do, for when the lists are to be emptied.
    pub fn leaves(&self) -> impl Iterator<Item = u16> + '_ {
        (0..self.lists.len() as u16).filter(|leaf| !self.is_empty(*leaf))
    }

    /// The owner that was named for a connection.
    pub fn owner(&self, conn: u32) -> Option<u16> {
        let owner = self.accounts.get(conn as usize)?.owner;
        (owner != NO_LEAF).then_some(owner)
    }

    /// Names the owner of a connection.
    pub fn set_owner(&mut self, conn: u32, leaf: u16, containers: &mut Containers) {
        let Some(account) = self.accounts.get_mut(conn as usize) else { return };
        let before = std::mem::replace(&mut account.owner, leaf);
        let held = u64::from(account.held_bytes);
        if before != NO_LEAF {
            containers.bind(before, -1);
            containers.note(before, |usage| usage.held_bytes -= held);
            containers.note(leaf, |usage| usage.held_bytes += held);
        } else {
            account.held_bytes = 0;
        }
        containers.bind(leaf, 1);
    }

    /// A connection of `leaf` holds so many bytes of buffers now.
    pub fn note_held(&mut self, conn: u32, leaf: u16, bytes: usize, containers: &mut Containers) {
        let Some(account) = self.accounts.get_mut(conn as usize) else { return };
        let now = bytes.min(u32::MAX as usize) as u32;
        if account.owner == NO_LEAF {
            account.owner = leaf;
            containers.bind(leaf, 1);
        }
        let before = std::mem::replace(&mut account.held_bytes, now);
        if before != now {
            let owner = account.owner;
            containers.note(owner, |usage: &mut ContainerUsage| {
                usage.held_bytes = usage.held_bytes + u64::from(now) - u64::from(before);
            });
        }
    }

    /// A connection is no more.
    pub fn forget_conn(&mut self, conn: u32, containers: &mut Containers) {
        self.dispositions.remove(&conn);
        let Some(account) = self.accounts.get_mut(conn as usize) else { return };
        let Account { owner, held_bytes } =
            std::mem::replace(account, Account { owner: NO_LEAF, held_bytes: 0 });
        if owner != NO_LEAF {
            containers.bind(owner, -1);
            containers.note(owner, |usage| usage.held_bytes -= u64::from(held_bytes));
        }
    }
}

/// Where work belongs that no socket owns.
pub(crate) const PROXY_OWNER: u16 = SYSTEM;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn agenda() -> (Agenda, Containers) {
        let containers = Containers::new();
        let mut agenda = Agenda::new(16, 16, &containers);
        agenda.make_room_for(7);
        (agenda, containers)
    }

    #[test]
    fn packets_and_tasks_take_turns() {
        let (mut agenda, _) = agenda();
        assert!(agenda.push(DEFAULT, Item::Conn(1)));
        assert!(!agenda.push(DEFAULT, Item::Conn(2)));
        assert_eq!(agenda.push_task(5), None);
        assert_eq!(agenda.push_task(5), None);
        let order: Vec<_> = std::iter::from_fn(|| agenda.pop(DEFAULT)).collect();
        let item = |n| Next::Item(Item::Conn(n));
        assert_eq!(order, [item(1), Next::Task(5), item(2)]);
        assert_eq!(agenda.push_task(5), Some(DEFAULT));
        assert_eq!(agenda.move_task(5, 3), Some((DEFAULT, 3)));
        assert!(agenda.is_empty(DEFAULT) && agenda.leaves().eq([3]));
        assert_eq!(agenda.pop(3), Some(Next::Task(5)));
    }

    #[test]
    fn what_connections_hold_follows_them() {
        let (mut agenda, mut containers) = agenda();
        agenda.note_held(1, DEFAULT, 500, &mut containers);
        agenda.note_held(1, DEFAULT, 200, &mut containers);
        assert_eq!(containers.usage(DEFAULT).held_bytes, 200);
        agenda.set_owner(1, SYSTEM, &mut containers);
        assert_eq!(
            (containers.usage(DEFAULT).held_bytes, containers.usage(SYSTEM).held_bytes),
            (0, 200)
        );
        agenda.forget_conn(1, &mut containers);
        assert_eq!((containers.usage(SYSTEM).held_bytes, agenda.owner(1)), (0, None));
    }

    proptest! {
        /// The lists behave as queues.
        #[test]
        fn agrees_with_queues(ops in prop::collection::vec((0u16..3, 0u8..5, 0u32..8), 0..200)) {
            let (mut agenda, _) = agenda();
            let mut items: [VecDeque<u32>; 3] = Default::default();
            let mut tasks: [VecDeque<u32>; 3] = Default::default();
            for (leaf, what, n) in ops {
                let at = usize::from(leaf);
                match what {
                    0 | 1 => {
                        let empty = items[at].is_empty() && tasks[at].is_empty();
                        prop_assert_eq!(agenda.push(leaf, Item::Conn(n)), empty);
                        items[at].push_back(n);
                    }
                    2 => {
                        agenda.push_task(n);
                        if !tasks.iter().any(|tasks| tasks.contains(&n)) {
                            tasks[usize::from(DEFAULT)].push_back(n);
                        }
                    }
                    3 => {
                        agenda.move_task(n, leaf);
                        if tasks.iter().any(|tasks| tasks.contains(&n)) && !tasks[at].contains(&n) {
                            tasks.iter_mut().for_each(|tasks| tasks.retain(|t| *t != n));
                            tasks[at].push_back(n);
                        }
                    }
                    _ => match agenda.pop(leaf) {
                        Some(Next::Task(n)) => prop_assert_eq!(Some(n), tasks[at].pop_front()),
                        Some(Next::Item(item)) => {
                            prop_assert_eq!(Some(item), items[at].pop_front().map(Item::Conn));
                        }
                        None => prop_assert!(items[at].is_empty() && tasks[at].is_empty()),
                    }
                }
                let all = items.iter().map(VecDeque::len).sum::<usize>()
                    + tasks.iter().map(VecDeque::len).sum::<usize>();
                prop_assert_eq!(agenda.queued, all);
            }
        }
    }
}
