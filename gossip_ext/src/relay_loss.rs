//! What iroh does not see to when a relay dies: it goes on queueing what is for that relay, nobody takes it out while the
//! relay refuses connections, and 65 packets hold up what is for all other relays too, for a minute and more
//! (docs/decisions/0008). So who has another relay ends its connections over the dead one before they fill the queue, and
//! is there on the others at once. Not here: which relay is home after that, and who dials.

use std::sync::{Arc, Weak};
use std::time::Duration;

use iroh::{TransportAddr, Watcher};

use crate::close;
use crate::connection::Link;
use crate::hub::Core;
use crate::relays;

/// How often it looks whether iroh has lost any connection to a relay. It is told of the home relay's at once.
const LOOK: Duration = Duration::from_millis(100);

/// Runs until the endpoint closes.
pub async fn run(core: Weak<Core>) {
    let (mut number, mut home) = {
        let Some(socket) = core.upgrade().and_then(|core| core.sockets.current()) else {
            return;
        };
        (socket.number, socket.iroh.home_relay_status())
    };
    let mut seen = 0;
    loop {
        // Both mean the same: look. The watcher ends with its endpoint, and then there is another one or no core.
        let _ = tokio::time::timeout(LOOK, home.updated()).await;
        let Some(core) = core.upgrade() else { return };
        let Some(socket) = core.sockets.current() else {
            return;
        };
        if socket.number != number {
            number = socket.number;
            home = socket.iroh.home_relay_status();
        }
        let lost = core.sockets.relay_disconnects();
        if std::mem::replace(&mut seen, lost) == lost {
            continue;
        }
        let Some(known) = core.relays.clone().filter(|known| known.urls().len() > 1) else {
            continue;
        };
        let urls = known.urls();
        known.touch(&socket.iroh, urls.clone());
        drop(socket); // it stays open for as long as anybody has it
        let links = core.links();
        let asked = urls.iter().map(|url| known.prober().why(url));
        let answers = n0_future::join_all(asked).await;
        for (url, why) in urls.iter().zip(answers) {
            let Some(why) = why else { continue };
            known.lose(url.clone());
            for link in &links {
                if relay_of(link).as_ref() == Some(url) {
                    core.counters.relay_cut.inc();
                    link.abort(close::relay_lost(&why));
                }
            }
        }
    }
}

/// The relay that a connection goes over now.
pub fn relay_of(link: &Arc<Link>) -> Option<iroh::RelayUrl> {
    let paths = link.quic.paths();
    let selected = paths.iter().find(iroh::endpoint::Path::is_selected)?;
    match selected.remote_addr() {
        TransportAddr::Relay(url) => Some(relays::plain(url)),
        _ => None,
    }
}
