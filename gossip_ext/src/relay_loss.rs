//! What iroh does not see to when a relay dies: it goes on queueing what is for that relay, nobody takes it out while the
//! relay refuses connections, and 65 packets hold up what is for all other relays too, for a minute and more
//! (docs/decisions/0008). So who has another relay ends its connections over the dead one before they fill the queue, and
//! is there on the others at once. Not here: which relay is home after that, and who dials.

use std::collections::HashSet;
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
    let Some(endpoint) = core.upgrade().and_then(|core| core.endpoint()) else {
        return;
    };
    let mut home = endpoint.home_relay_status();
    drop(endpoint);
    let mut seen = 0;
    loop {
        // Both mean the same: look. The watcher ends with the endpoint, and then so does the core.
        let _ = tokio::time::timeout(LOOK, home.updated()).await;
        let Some(core) = core.upgrade() else { return };
        let Some(endpoint) = core.endpoint() else {
            return;
        };
        let lost = core.socket.relay_conns_closed.get();
        if std::mem::replace(&mut seen, lost) == lost {
            continue;
        }
        let Some(known) = core.relays.clone().filter(|known| known.urls().len() > 1) else {
            continue;
        };
        known.touch(&endpoint, known.urls());
        drop(endpoint); // its socket stays open for as long as anybody has it
        let links = core.links();
        let used: HashSet<_> = links.iter().filter_map(relay_of).collect();
        for url in used {
            if let Some(why) = known.prober().why(&url).await {
                for link in links
                    .iter()
                    .filter(|link| relay_of(link).as_ref() == Some(&url))
                {
                    core.counters.relay_cut.inc();
                    link.abort(close::relay_lost(&why));
                }
            }
        }
    }
}

/// The relay that a connection goes over now.
fn relay_of(link: &Arc<Link>) -> Option<iroh::RelayUrl> {
    let paths = link.quic.paths();
    let selected = paths.iter().find(iroh::endpoint::Path::is_selected)?;
    match selected.remote_addr() {
        TransportAddr::Relay(url) => Some(relays::plain(url)),
        _ => None,
    }
}
