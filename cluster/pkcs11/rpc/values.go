package rpc

import "github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"

// Form is how the peer encodes mechanisms: it follows from the byte it offers first.
type Form uint8

// The forms.
const (
	FormOld    Form = iota // p11-kit up to 0.25.5
	FormNew                // p11-kit 0.25.6 and later
	FormModule             // libhsmbackup-pkcs11.so
)

// moduleByte is what libhsmbackup-pkcs11.so offers, and is answered.
const moduleByte = 0x48

// Version is what a table of versions is made of (CK_VERSION).
type Version struct{ Major, Minor byte }

// Room is how much a caller has room for.
type Room struct {
	// Query: the caller asks for the size only.
	Query bool
	// N is the room in bytes or items, 0 for a query.
	N uint32
}

// Fits tells whether n items fit.
func (r Room) Fits(n int) bool { return !r.Query && uint64(n) <= uint64(r.N) }

// Size answers a Room with a number only: the length that it takes.
type Size uint32

// Attribute is one attribute of a template or an answer. Which field holds the value
// depends on the kind of the type: Num for flags (0 or 1) and numbers, Attrs, Mechs,
// and Bytes for the rest.
type Attribute struct {
	Type ck.Attr
	// Valid is false where the length is CK_UNAVAILABLE_INFORMATION.
	Valid bool
	// Length is the length in the memory of the sender.
	Length uint32
	Num    uint64
	Bytes  []byte
	Attrs  []Attribute
	Mechs  []ck.Mech
	// sizeOnly: the value is not sent, only its length.
	sizeOnly bool
}

// AttributeRoom asks for one attribute.
type AttributeRoom struct {
	Type ck.Attr
	Room uint32 // 0: the caller asks for the length only
	// Nested are the elements of a template for which there is room.
	Nested []AttributeRoom
}

// Mechanism is CK_MECHANISM. The fields of its parameter structure stand in Nums
// and Bufs in their order, if Has is set; a parameter whose structure is not known
// is Raw.
type Mechanism struct {
	Type ck.Mech
	Has  bool
	Nums []uint64
	Bufs [][]byte
	Raw  []byte
}

// Cancel tells whether this is the null pointer that cancels an operation (v3.0).
func (m Mechanism) Cancel() bool { return m.Type == ck.NoMechanism }

// Args are the values of a request, in the order of its signature. The accessors
// panic when asked for another type than the signature says: that is a mistake of the
// server, not of the peer.
type Args []any

// Ulong returns value i, a CK_ULONG.
func (a Args) Ulong(i int) uint64 { return a[i].(uint64) }

// Byte returns value i, a byte.
func (a Args) Byte(i int) byte { return a[i].(byte) }

// Bytes returns value i, a byte array; nil for a null pointer.
func (a Args) Bytes(i int) []byte { return a[i].([]byte) }

// Text returns value i, a string.
func (a Args) Text(i int) string { return a[i].(string) }

// Room returns value i, room for bytes or numbers.
func (a Args) Room(i int) Room { return a[i].(Room) }

// Attributes returns value i, a template.
func (a Args) Attributes(i int) []Attribute { return a[i].([]Attribute) }

// Rooms returns value i, room for attributes.
func (a Args) Rooms(i int) []AttributeRoom { return a[i].([]AttributeRoom) }

// Mechanism returns value i, a mechanism.
func (a Args) Mechanism(i int) Mechanism { return a[i].(Mechanism) }
