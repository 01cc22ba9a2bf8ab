//! The interleavings that the memory model allows, with up to three preemptions, of threads that give references back and the owner
//! who takes them: the list of `returns.rs` itself, compiled here on loom's atomics.

mod sync {
    pub use loom::sync::atomic::{AtomicU32, Ordering};
}

#[path = "../src/returns.rs"]
mod returns;

use std::cell::RefCell;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use returns::Returns;

/// A buffer that is read by those who hold references on it and written by its owner once all are back:
/// loom reports a read and a write that nothing orders.
struct World {
    returns: Returns,
    bytes: [UnsafeCell<u32>; 2],
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self { returns: Returns::new(2), bytes: [UnsafeCell::new(7), UnsafeCell::new(7)] })
    }

    /// What a driver does: reads the bytes, then gives its reference back.
    fn transmit(&self, buffer: u32) {
        // SAFETY: loom's own check of this access is the test.
        self.bytes[buffer as usize].with(|byte| unsafe { assert_eq!(*byte, 7) });
        self.returns.give(buffer);
    }

    /// What the owner does: takes what came back, and uses a buffer anew when all is back.
    fn reclaim(&self, left: &RefCell<[u32; 2]>) {
        self.returns.take(|buffer, count| {
            let left = &mut left.borrow_mut()[buffer as usize];
            *left = left.checked_sub(count).expect("more came back than was out");
            if *left == 0 {
                // SAFETY: as above.
                self.bytes[buffer as usize].with_mut(|byte| unsafe { *byte = 9 });
            }
        });
    }
}

fn explore(references: &'static [&'static [u32]]) {
    let mut model = loom::model::Builder::new();
    // Without a bound the largest case takes hours; what two threads can do wrong shows with three.
    model.preemption_bound = Some(3);
    model.check(move || {
        let world = World::new();
        let mut out = [0; 2];
        references.iter().flat_map(|list| list.iter()).for_each(|&at| out[at as usize] += 1);
        let left = RefCell::new(out);
        let threads: Vec<_> = references
            .iter()
            .map(|list| {
                let world = Arc::clone(&world);
                thread::spawn(move || list.iter().for_each(|&buffer| world.transmit(buffer)))
            })
            .collect();
        // A reference that is lost never comes: loom then reports a loop without end.
        while *left.borrow() != [0, 0] {
            world.reclaim(&left);
            thread::yield_now();
        }
        for thread in threads {
            thread.join().unwrap();
        }
        world.returns.take(|_, _| panic!("more came back than was out"));
    });
}

#[test]
fn two_threads_give_back_one_buffer() {
    explore(&[&[0], &[0]]);
}

#[test]
fn a_buffer_comes_back_again_while_the_owner_looks() {
    // Its place is on top of another one when it is taken, and on a new list before that is looked at.
    explore(&[&[1, 0, 0]]);
}

#[test]
fn two_threads_give_back_two_buffers() {
    explore(&[&[0, 1], &[1]]);
}
