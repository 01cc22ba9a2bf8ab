//! Files out of images, and images that take each other's place.

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{Folder, Response, SERVER, World, pattern, server_config};
use millstream_disk::erofs::{Image, Plan};

/// An image of the files in a folder.
fn image(folder: &Folder, name: &str) -> Image {
    let path = folder.0.with_extension(name);
    let out = std::fs::File::create(&path).unwrap();
    Plan::scan(&folder.0).unwrap().write(&out, |_| ()).unwrap();
    let image = Image::open(&path).unwrap();
    // An open image needs its name no longer.
    std::fs::remove_file(&path).unwrap();
    image
}

fn file_of(folder: &Folder, name: &str) -> std::fs::File {
    std::fs::File::options().write(true).open(Path::new(&folder.0).join(name)).unwrap()
}

#[test]
fn files_of_an_image_are_served() {
    let folder = Folder::new();
    folder.put("index.html", "home");
    folder.put("docs/index.html", "docs");
    folder.put("empty", "");
    folder.put("large.bin", pattern(1_000_001));
    let image = image(&folder, "image");
    let mut world = World::new(Folder::new(), server_config());
    assert_eq!(world.get("/", "").status, 404, "the folder is empty");
    world.server.set_source(image);
    for _ in 0..4 {
        assert_eq!(world.get("/", "").body, b"home");
        assert_eq!(world.get("/docs/", "").body, b"docs");
        assert_eq!(world.get("/docs", "").status, 301);
        assert_eq!(world.get("/empty", "").body, b"");
        assert!(world.get("/large.bin", "").body == pattern(1_000_001));
        let part = world.get("/large.bin", "Range: bytes=999990-\r\n");
        assert_eq!((part.status, &part.body[..]), (206, &pattern(1_000_001)[999_990..]));
        assert_eq!(world.get("/missing", "").status, 404);
        assert_eq!(world.get("/large.bin/", "").status, 404);
    }
    assert!(world.server.stats().cache_hits > 0);
}

#[test]
fn another_image_takes_the_place_and_no_transfer_notices() {
    let folder = Folder::new();
    let old = pattern(3_000_000);
    folder.put("film", &old);
    folder.put("page", "old");
    let a = image(&folder, "a");
    // The same lengths and times: the image alone tells them apart.
    let times = ["film", "page"].map(|name| file_of(&folder, name).metadata().unwrap().modified());
    let mut new = old.clone();
    new.reverse();
    folder.put("film", &new);
    folder.put("page", "new");
    for (name, time) in ["film", "page"].iter().zip(times) {
        file_of(&folder, name).set_modified(time.unwrap()).unwrap();
    }
    let b = image(&folder, "b");

    let mut world = World::new(Folder::new(), server_config());
    world.server.set_source(a.clone());
    for _ in 0..3 {
        assert_eq!(world.get("/page", "").body, b"old");
    }
    let etag = world.get("/page", "").field("ETag").unwrap().to_owned();
    let unless = format!("If-None-Match: {etag}\r\n");
    assert_eq!(world.get("/page", &unless).status, 304);
    // A transfer begins, and one more request waits behind it on the same connection.
    let server = world.server.clone();
    let got = world.run(move |stack| {
        Box::pin(async move {
            let stream = stack.connect(SERVER).await.unwrap();
            let request = b"GET /film HTTP/1.1\r\nHost: h\r\n\r\nGET /film HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut got = Vec::new();
            let mut switched = false;
            while let Some(bytes) = stream.read_buf().await.unwrap() {
                got.extend_from_slice(&bytes);
                if got.len() > 100_000 && !switched {
                    switched = true;
                    server.set_source(b.clone());
                }
            }
            got
        })
    });
    let (first, rest) = Response::parse(&got, false);
    let (second, rest) = Response::parse(rest, false);
    assert!(rest.is_empty());
    assert!(first.body == old, "it goes on from the old image");
    assert!(second.body == new, "the connection stays, and the next request meets the new one");
    assert_ne!(first.field("ETag"), second.field("ETag"));
    assert_eq!(first.field("Last-Modified"), second.field("Last-Modified"));
    let response = world.get("/page", &unless);
    assert_eq!((response.status, &response.body[..]), (200, &b"new"[..]));
    world.server.set_source(a);
    assert_eq!(world.get("/page", &unless).status, 304, "the old one back again");
}

#[test]
fn a_file_that_changes_while_it_is_sent_never_looks_whole() {
    let folder = Folder::new();
    let old = pattern(3_000_000);
    folder.put("film", &old);
    // Beyond the tick of the file system's clock.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let mut world = World::new(folder, server_config());
    let path = world.folder.0.join("film");
    let mut new = old.clone();
    new.reverse();
    let got = world.run(move |stack| {
        Box::pin(async move {
            let stream = stack.connect(SERVER).await.unwrap();
            stream.write_all(b"GET /film HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            let mut got = Vec::new();
            let mut changed = false;
            loop {
                match stream.read_buf().await {
                    Ok(Some(bytes)) => got.extend_from_slice(&bytes),
                    Ok(None) => return (got, true),
                    Err(_) => return (got, false),
                }
                if got.len() > 100_000 && !changed {
                    changed = true;
                    // In place: its length and name stay.
                    let file = std::fs::File::options().write(true).open(&path).unwrap();
                    file.write_all_at(&new, 0).unwrap();
                }
            }
        })
    });
    let (bytes, ended) = got;
    assert!(!ended, "a reset, not an end");
    assert!(bytes.len() < old.len(), "{} bytes came", bytes.len());
    assert_eq!(world.server.stats().disk_errors, 1);
    assert_eq!(world.shard.stack().metrics().splice_changed, 1);
    // And is served whole again after that.
    world.pass(std::time::Duration::from_secs(2));
    assert!(world.get("/film", "").body.iter().eq(old.iter().rev()));
}
