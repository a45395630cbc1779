package mem

import "fmt"

// canary is a bug planted on purpose, so that the simulator's checks can be shown to fail. Production runs with canaryNone.
type canary uint8

const (
	canaryNone             canary = iota
	canaryLostInval               // the directory forgets to invalidate one sharer
	canaryEarlyGrant              // a requester installs before all acknowledgements are here
	canaryEpochIgnored            // messages of other epochs are believed
	canaryStaleSerial             // repeats of messages of finished transactions are believed
	canaryReadBeforeRevoke        // a page's contents are read before its holder's access ended
	canaryPinIgnored              // pages are taken away from devices that hold them
	canaryRetainedStale           // a retained copy is taken for the latest though its grantee may have written
	canaryZeroAgain               // pages whose holders all died become Zero again
	canaryDoneOnce                // a lost Done is never made up for
	canaryNoDowngrade             // a writer that supplied a reader goes on writing
	canaryEarlyServe              // a rebuilt directory serves before all survivors reported
	canaryRetainedEpoch           // a copy retained in an epoch is believed after a later epoch's directory served
	canaryGrantingZero            // a page whose first grant was under way counts as Zero though the grantee died
	canaryOldAuthority            // a dead directory that may have served is passed over for an older, living one
	canaryHomeBusy                // a region's directory goes while a transaction is under way
	canaryHomeTwice               // who gave a region's directory away goes on serving
	canaryHomeSerial              // the new directory of a region does not go on from the serials of the old one
	canaryHomeForgotten           // where a region's directory went is not reported after a change of epoch
	canaryHomeUnknown             // a region's directory goes to a part that does not know of such things
	canaryEnd
)

var canaryNames = [canaryEnd]string{"", "lost-inval", "early-grant", "epoch-ignored", "stale-serial", "read-before-revoke", "pin-ignored",
	"retained-stale", "zero-again", "done-once", "no-downgrade", "early-serve", "retained-epoch", "granting-zero", "old-authority", "home-busy", "home-twice", "home-serial", "home-forgotten", "home-unknown"}

// Canaries lists the values of Config.Canary.
func Canaries() []string { return append([]string(nil), canaryNames[1:]...) }

func parseCanary(name string) canary {
	for i, n := range canaryNames {
		if n == name {
			return canary(i)
		}
	}
	panic(fmt.Sprintf("mem: unknown canary %q", name))
}
