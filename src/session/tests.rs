use std::time::Duration;

use serde_json::{Map, Value, json};

use super::commit::{Committed, Committer, CookieDecision, Directives, How, Refusal, Turn};
use super::cookie::SessionCookie;
use super::model::{Counted, Records, at_once, realm, rules};
use super::realm::{OnReuse, Realm, Rules};
use super::recall::{Absence, Lately, Recall, Session, again, confirm, recall};
use crate::keys::{KeyRing, RingKey};

const START: u64 = 1_800_000_000;

/// A realm with its store, and the time.
struct Tale {
    realm: Realm,
    store: Records,
    entropy: Counted,
    now: u64,
}

impl Tale {
    fn begin() -> Self {
        Tale { realm: realm(None), store: Records::default(), entropy: Counted::default(), now: START }
    }

    fn with(rules: Rules) -> Self {
        let ring = KeyRing::new(vec![RingKey::from_secret([7; 32])]);
        Tale { realm: Realm::new("shop", &ring, rules), ..Tale::begin() }
    }

    fn later(&mut self, seconds: u64) -> &mut Self {
        self.now += seconds;
        self
    }

    fn look(&self, cookie: &SessionCookie) -> Recall {
        at_once(recall(&self.realm, &self.store, cookie.clone(), self.now)).unwrap()
    }

    fn session(&self, cookie: &SessionCookie) -> Session {
        match self.look(cookie) {
            Recall::Session(session) => Session::clone(&session),
            Recall::None(absence) => panic!("no session: {absence:?}"),
        }
    }

    fn absence(&self, cookie: &SessionCookie) -> Absence {
        match self.look(cookie) {
            Recall::None(absence) => absence,
            Recall::Session(session) => panic!("there is a session: {session:?}"),
        }
    }

    fn say(&mut self, before: &Recall, directives: &Directives) -> Result<Committed, Refusal> {
        let committer = Committer { realm: &self.realm, store: &self.store, now: self.now };
        at_once(committer.commit(before, directives, &mut self.entropy))
    }

    fn begin_session(&mut self, directives: &Directives) -> SessionCookie {
        let begun = self.say(&Recall::None(Absence::NoCookie), directives).unwrap();
        cookie_of(&begun)
    }

    fn log_in(&mut self, subject: &str) -> SessionCookie {
        self.begin_session(&login(subject))
    }

    fn turn(&mut self, cookie: &SessionCookie, turn: Turn) -> Result<Committed, Refusal> {
        let before = self.look(cookie);
        self.say(&before, &Directives { turn: Some(turn), ..Directives::default() })
    }

    fn renew(&mut self, cookie: &SessionCookie) -> Committed {
        let session = self.session(cookie);
        let committer = Committer { realm: &self.realm, store: &self.store, now: self.now };
        at_once(committer.renew_if_due(&session, &mut self.entropy)).unwrap()
    }
}

fn cookie_of(committed: &Committed) -> SessionCookie {
    match &committed.cookie {
        CookieDecision::Set(cookie) => cookie.clone(),
        other => panic!("no cookie is set: {other:?}"),
    }
}

fn login(subject: &str) -> Directives {
    let turn = Turn::Login { subject: subject.into(), how: How { acr: "pwd".into(), ..How::default() } };
    Directives { turn: Some(turn), ..Directives::default() }
}

fn patch(value: &Value) -> Directives {
    Directives { patch: value.as_object().cloned(), ..Directives::default() }
}

#[test]
fn a_cookie_reads_back_and_nothing_else_does() {
    let mut tale = Tale::begin();
    let cookie = tale.log_in("alice");
    let value = cookie.value();
    assert_eq!(value.len(), super::cookie::CHARS);
    assert_eq!(SessionCookie::parse(value.as_bytes()), Some(cookie));
    for wrong in ["", "x", &value[1..], &value.replace(&value[..1], "_"), &"~".repeat(super::cookie::CHARS)] {
        assert_eq!(SessionCookie::parse(wrong.as_bytes()), None, "{wrong}");
    }
}

#[test]
fn data_is_written_by_version_and_read_again() {
    let mut tale = Tale::begin();
    let cookie = tale.begin_session(&patch(&json!({"cart": 1})));
    let before = tale.look(&cookie);
    let wanted = Directives { only_if: Some(1), ..patch(&json!({"cart": 2})) };
    tale.say(&before, &wanted).unwrap();
    assert_eq!(tale.say(&before, &wanted), Err(Refusal::WrongVersion), "it is version 2 by now");
    // Without a condition the later patch wins, also when it was loaded before the earlier was written.
    tale.say(&before, &patch(&json!({"theme": "dark"}))).unwrap();
    let lineage = tale.session(&cookie).lineage;
    assert_eq!((&*lineage.data, lineage.version), (r#"{"cart":2,"theme":"dark"}"#, 3));
}

#[test]
fn a_login_makes_another_session_and_mutes_the_one_before() {
    let mut tale = Tale::begin();
    let planted = tale.begin_session(&patch(&json!({"cart": 1})));
    let on_its_way = tale.look(&planted);
    let before = tale.look(&planted);
    let cookie = cookie_of(&tale.say(&before, &login("alice")).unwrap());
    let (old, new) = (before.session().unwrap(), tale.session(&cookie));
    assert_ne!((old.lineage.sid, &old.cookie.secret), (new.lineage.sid, &new.cookie.secret));
    assert_eq!((new.cookie.tag, &*new.lineage.data), (planted.tag, r#"{"cart":1}"#));
    assert_eq!(tale.absence(&planted), Absence::Muted(None), "nothing leads from it to what follows");
    assert_eq!(tale.say(&on_its_way, &patch(&json!({"x": 1}))), Err(Refusal::Gone));
    let muted = tale.look(&planted);
    assert_eq!(tale.say(&muted, &patch(&json!({"x": 1}))), Err(Refusal::Gone), "nor does it get a new session");
    assert_eq!(tale.say(&muted, &login("mallory")), Err(Refusal::Gone));
}

#[test]
fn what_one_user_has_left_is_not_for_another() {
    let mut tale = Tale::begin();
    let cookie = tale.log_in("alice");
    let before = tale.look(&cookie);
    tale.say(&before, &patch(&json!({"address": "her own"}))).unwrap();
    let before = tale.look(&cookie);
    let again = cookie_of(&tale.say(&before, &login("alice")).unwrap());
    assert_eq!(&*tale.session(&again).lineage.data, r#"{"address":"her own"}"#);
    let before = tale.look(&again);
    let other = cookie_of(&tale.say(&before, &login("bob")).unwrap());
    assert_eq!(&*tale.session(&other).lineage.data, "{}");
}

#[test]
fn only_what_is_to_be_carried_survives_a_login() {
    let mut tale = Tale::with(Rules { carry: Some(vec!["cart".into()]), ..rules() });
    let cookie = tale.begin_session(&patch(&json!({"cart": 1, "is_admin": true})));
    let before = tale.look(&cookie);
    let cookie = cookie_of(&tale.say(&before, &login("alice")).unwrap());
    assert_eq!(&*tale.session(&cookie).lineage.data, r#"{"cart":1}"#);
}

#[test]
fn a_renewed_cookie_takes_over_and_the_old_one_counts_for_a_moment() {
    let mut tale = Tale::begin();
    let first = tale.log_in("alice");
    assert_eq!(tale.later(899).renew(&first).cookie, CookieDecision::Leave);
    let second = cookie_of(&tale.later(1).renew(&first));
    let sid = tale.session(&second).lineage.sid;
    // The response may have been lost: whoever asks with the old one is given the same new one.
    let again = tale.later(30).session(&first);
    assert_eq!((again.lineage.sid, again.successor), (sid, Some(second.clone())));
    assert_eq!(tale.renew(&first).cookie, CookieDecision::Set(second.clone()));
    let session = tale.session(&second);
    assert!(session.is_to_be_confirmed());
    at_once(confirm(&tale.realm, &tale.store, &session, tale.now)).unwrap();
    assert!(!tale.session(&second).is_to_be_confirmed());
}

#[test]
fn a_cookie_whose_successor_is_in_use_is_a_copy_and_ends_the_session() {
    let mut tale = Tale::begin();
    let stolen = tale.log_in("alice");
    let second = cookie_of(&tale.later(900).renew(&stolen));
    // Nobody has used the new one: its response was lost, however long ago.
    assert_eq!(tale.later(600).session(&stolen).successor, Some(second.clone()));
    let session = tale.session(&second);
    at_once(confirm(&tale.realm, &tale.store, &session, tale.now)).unwrap();
    assert_eq!(tale.absence(&stolen), Absence::Reused);
    assert_eq!(tale.absence(&second), Absence::Missing, "whoever has it loses it");
}

#[test]
fn where_reuse_is_only_logged_the_session_goes_on_for_the_newer_cookie() {
    let mut tale = Tale::with(Rules { on_reuse: OnReuse::Log, ..rules() });
    let old = tale.log_in("alice");
    let new = cookie_of(&tale.later(900).renew(&old));
    let session = tale.session(&new);
    at_once(confirm(&tale.realm, &tale.store, &session, tale.now)).unwrap();
    assert_eq!(tale.later(31).absence(&old), Absence::Reused);
    tale.session(&new);
}

#[test]
fn eight_hours_after_the_login_it_is_over_whatever_is_asked() {
    let mut tale = Tale::begin();
    let mut cookie = tale.log_in("alice");
    for _ in 0..31 {
        cookie = cookie_of(&tale.later(900).renew(&cookie));
    }
    let session = tale.later(899).session(&cookie);
    assert_eq!(tale.realm.lifetime(&session.lineage, tale.now), Duration::from_secs(1));
    assert_eq!(tale.later(1).absence(&cookie), Absence::Expired);
}

#[test]
fn an_anonymous_session_is_not_renewed_and_lives_by_its_use() {
    let mut tale = Tale::begin();
    let cookie = tale.begin_session(&patch(&json!({"cart": 1})));
    assert_eq!(tale.later(10_000).renew(&cookie).cookie, CookieDecision::Leave);
    let session = tale.session(&cookie);
    assert_eq!(tale.realm.lifetime(&session.lineage, tale.now), rules().anonymous);
    assert_eq!(session.ends_at(&tale.realm), None);
}

#[test]
fn use_is_written_down_now_and_then() {
    let mut tale = Tale::begin();
    let cookie = tale.log_in("alice");
    let mut session = tale.session(&cookie);
    assert!(!session.touch_is_due(&tale.realm, tale.now));
    session.expires_in = rules().idle - Duration::from_secs(89);
    assert!(!session.touch_is_due(&tale.realm, tale.now), "a twentieth of half an hour is 90 seconds");
    session.expires_in = rules().idle - Duration::from_secs(90);
    assert!(session.touch_is_due(&tale.realm, tale.now));
}

#[test]
fn a_logout_ends_the_session_for_every_cookie_that_it_had() {
    let mut tale = Tale::begin();
    let first = tale.log_in("alice");
    let second = cookie_of(&tale.later(900).renew(&first));
    let slow = tale.look(&second);
    let out = tale.turn(&second, Turn::Logout).unwrap();
    assert_eq!((out.cookie, out.logged_out), (CookieDecision::Expire, true));
    assert_eq!((tale.absence(&first), tale.absence(&second)), (Absence::Muted(None), Absence::Muted(None)));
    assert_eq!(tale.say(&slow, &patch(&json!({"x": 1}))), Err(Refusal::Gone), "a slow request does not revive it");
    let out = tale.say(&slow, &Directives { turn: Some(Turn::Logout), ..Directives::default() }).unwrap();
    assert_eq!(out.ended.len(), 1, "whoever wants a logout has it");
    assert_eq!(out.cookie, CookieDecision::Leave, "and the cookie that the client has by now may be another's");
}

#[test]
fn the_other_sessions_of_a_subject_end_and_this_one_goes_on() {
    let mut tale = Tale::begin();
    let (phone, laptop, bob) = (tale.log_in("alice"), tale.log_in("alice"), tale.log_in("bob"));
    let before = tale.look(&laptop);
    let wanted = Directives { logout_others: true, ..Directives::default() };
    let done = tale.say(&before, &wanted).unwrap();
    assert_eq!(done.cookie, CookieDecision::Leave);
    assert_eq!(done.ended.len(), 1);
    assert_eq!(tale.absence(&phone), Absence::Revoked);
    tale.session(&bob);
    // It is spared once more, and so is what it becomes.
    let before = tale.look(&laptop);
    tale.say(&before, &wanted).unwrap();
    let laptop = cookie_of(&tale.turn(&laptop, Turn::StepUp(How { acr: "mfa".into(), ..How::default() })).unwrap());
    let session = tale.session(&laptop);
    assert_eq!(&*session.lineage.login.unwrap().acr, "mfa");
}

#[test]
fn a_logout_of_all_ends_all_and_is_not_undone_by_a_step_up_on_its_way() {
    let mut tale = Tale::begin();
    let (phone, laptop) = (tale.log_in("alice"), tale.log_in("alice"));
    let on_its_way = tale.look(&phone);
    tale.turn(&laptop, Turn::LogoutAll).unwrap();
    assert_eq!((tale.absence(&phone), tale.absence(&laptop)), (Absence::Revoked, Absence::Muted(None)));
    let step_up = Directives { turn: Some(Turn::StepUp(How::default())), ..Directives::default() };
    assert_eq!(tale.say(&on_its_way, &step_up), Err(Refusal::Gone));
    // Who shows who they are begins another.
    let again = cookie_of(&tale.say(&on_its_way, &login("alice")).unwrap());
    tale.session(&again);
}

#[test]
fn a_logout_of_this_one_and_the_others_is_one_of_all() {
    let mut tale = Tale::begin();
    let (phone, laptop) = (tale.log_in("alice"), tale.log_in("alice"));
    let before = tale.look(&laptop);
    let both = Directives { turn: Some(Turn::Logout), logout_others: true, ..Directives::default() };
    let with_data = Directives { patch: patch(&json!({"x": 1})).patch, ..both.clone() };
    assert!(matches!(tale.say(&before, &with_data), Err(Refusal::Bad(_))), "there is no data after it");
    tale.say(&before, &both).unwrap();
    assert_eq!((tale.absence(&phone), tale.absence(&laptop)), (Absence::Revoked, Absence::Muted(None)));
}

#[test]
fn a_login_can_end_the_others() {
    let mut tale = Tale::begin();
    let phone = tale.log_in("alice");
    let anonymous = tale.begin_session(&patch(&json!({"cart": 1})));
    let before = tale.look(&anonymous);
    let laptop = cookie_of(&tale.say(&before, &Directives { logout_others: true, ..login("alice") }).unwrap());
    assert_eq!(tale.absence(&phone), Absence::Revoked);
    tale.session(&laptop);
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_is_written() {
    let mut tale = Tale::with(Rules { most_bytes: 100, ..rules() });
    let cookie = tale.begin_session(&patch(&json!({"cart": 1})));
    let before = tale.look(&cookie);
    for wrong in [
        Directives { turn: Some(Turn::StepUp(How::default())), ..Directives::default() },
        Directives { logout_others: true, ..Directives::default() },
        patch(&json!({"text": "x".repeat(100)})),
        Directives { patch: patch(&json!({"text": "x".repeat(100)})).patch, ..login("alice") },
    ] {
        assert!(matches!(tale.say(&before, &wrong), Err(Refusal::Bad(_) | Refusal::Oversized(_))), "{wrong:?}");
        let session = tale.session(&cookie);
        assert_eq!((&*session.lineage.data, session.lineage.version), (r#"{"cart":1}"#, 1));
    }
    let none = Recall::None(Absence::NoCookie);
    for turn in [Turn::Renew, Turn::StepUp(How::default())] {
        let wrong = Directives { turn: Some(turn), ..Directives::default() };
        assert!(matches!(tale.say(&none, &wrong), Err(Refusal::Bad(_))));
    }
}

#[test]
fn a_cookie_of_one_realm_opens_nothing_in_another() {
    let mut tale = Tale::begin();
    let cookie = tale.log_in("alice");
    let ring = KeyRing::new(vec![RingKey::from_secret([7; 32])]);
    tale.realm = Realm::new("blog", &ring, rules());
    assert_eq!(tale.absence(&cookie), Absence::Missing);
}

#[test]
fn a_ring_is_rotated_in_two_steps_and_nobody_is_logged_out() {
    let mut tale = Tale::begin();
    let key = |byte| RingKey::from_secret([byte; 32]);
    let old = tale.log_in("alice");
    tale.realm = Realm::new("shop", &KeyRing::new(vec![key(8), key(7)]), rules());
    let sid = tale.session(&old).lineage.sid;
    let new = cookie_of(&tale.later(900).renew(&old));
    assert_ne!(new.key, old.key);
    assert_eq!(tale.session(&new).lineage.sid, sid, "its public name stays");
    let fresh = tale.log_in("alice");
    tale.turn(&fresh, Turn::LogoutAll).unwrap();
    assert_eq!(tale.absence(&new), Absence::Revoked, "a logout of all reaches what an older key has made");
    tale.realm = Realm::new("shop", &KeyRing::new(vec![key(9)]), rules());
    assert_eq!(tale.absence(&new), Absence::UnknownKey);
}

#[test]
fn values_that_were_swapped_in_the_store_do_not_open() {
    let mut tale = Tale::begin();
    let (alice, bob) = (tale.log_in("alice"), tale.log_in("bob"));
    let (hers, his) = (tale.session(&alice), tale.session(&bob));
    tale.store.swap(hers.lineage_key, his.lineage_key);
    assert_eq!((tale.absence(&alice), tale.absence(&bob)), (Absence::Unreadable, Absence::Unreadable));
    tale.store.swap(hers.lineage_key, his.lineage_key);
    tale.session(&alice);
    tale.store.swap(hers.handle_key, his.handle_key);
    assert_eq!((tale.absence(&alice), tale.absence(&bob)), (Absence::Unreadable, Absence::Unreadable));
}

#[test]
fn the_store_holds_nothing_that_can_be_used() {
    let mut tale = Tale::begin();
    let canaries = ["alice-the-subject", "canary-of-the-data"];
    let cookie = tale.log_in(canaries[0]);
    let before = tale.look(&cookie);
    tale.say(&before, &patch(&json!({"secret": canaries[1]}))).unwrap();
    let dump = tale.store.dump();
    let secret = data_encoding::BASE64URL_NOPAD.encode(cookie.secret.as_slice());
    let needles = [canaries[0].as_bytes(), canaries[1].as_bytes(), secret.as_bytes(), cookie.secret.as_slice()];
    for needle in needles {
        assert!(!dump.windows(needle.len()).any(|window| window == needle));
    }
    assert!(dump.len() > 300, "there is something to look through");
}

#[test]
fn every_changed_byte_of_a_cookie_leads_nowhere() {
    let mut tale = Tale::begin();
    let cookie = tale.log_in("alice");
    for at in 0..32 {
        let mut other = cookie.clone();
        other.secret[at] ^= 1;
        assert_eq!(tale.absence(&other), Absence::Missing);
    }
    let elsewhere = SessionCookie { tag: cookie.tag ^ 1, ..cookie.clone() };
    assert_eq!(tale.absence(&elsewhere), Absence::Missing);
    tale.session(&cookie);
}

#[test]
fn a_replacement_takes_the_place_of_all_data() {
    let mut tale = Tale::begin();
    let cookie = tale.begin_session(&patch(&json!({"a": 1, "b": 2})));
    let before = tale.look(&cookie);
    let whole: Map<String, Value> = Map::from_iter([("c".to_owned(), json!(3))]);
    tale.say(&before, &Directives { replace: Some(whole), only_if: Some(1), ..Directives::default() }).unwrap();
    assert_eq!(&*tale.session(&cookie).lineage.data, r#"{"c":3}"#);
}

#[test]
fn what_was_found_lately_is_found_again_until_anything_of_it_changes() {
    let mut tale = Tale::begin();
    let lately = Lately::default();
    let cookie = tale.log_in("alice");
    let look = |tale: &Tale| at_once(lately.recall(&tale.realm, &tale.store, cookie.clone(), tale.now)).unwrap();
    let first = look(&tale);
    let (Recall::Session(first), Recall::Session(again)) = (&first, &look(&tale)) else { panic!("it is there") };
    assert!(std::sync::Arc::ptr_eq(first, again), "nothing was opened again");
    let before = tale.look(&cookie);
    tale.say(&before, &patch(&json!({"cart": 1}))).unwrap();
    assert_eq!(&*look(&tale).session().unwrap().lineage.data, r#"{"cart":1}"#);
    let renewed = cookie_of(&tale.later(900).renew(&cookie));
    assert_eq!(look(&tale).session().unwrap().successor, Some(renewed));
    let other = tale.log_in("alice");
    let session = look(&tale);
    assert!(session.session().is_some());
    tale.turn(&other, Turn::LogoutAll).unwrap();
    assert_eq!(look(&tale), Recall::None(Absence::Revoked));
    let cookie = tale.log_in("bob");
    let look = |tale: &Tale| at_once(lately.recall(&tale.realm, &tale.store, cookie.clone(), tale.now)).unwrap();
    assert!(look(&tale).session().is_some() && look(&tale).session().is_some());
    tale.later(28_800);
    assert_eq!(look(&tale), Recall::None(Absence::Expired), "the time counts, too");
}

#[test]
fn what_lasts_longer_than_a_cookie_is_no_thief() {
    let mut tale = Tale::begin();
    let first = tale.log_in("alice");
    let long_lived = tale.session(&first);
    let second = cookie_of(&tale.later(900).renew(&first));
    let session = tale.session(&second);
    at_once(confirm(&tale.realm, &tale.store, &session, tale.now)).unwrap();
    tale.later(600);
    let now = at_once(again(&tale.realm, &tale.store, &long_lived, tale.now)).unwrap();
    assert_eq!(now.session().unwrap().lineage.sid, long_lived.lineage.sid);
    // Its patch was on the way all the time, and others were ahead.
    let others = tale.look(&second);
    tale.say(&others, &patch(&json!({"other": 1}))).unwrap();
    let long_lived = Recall::Session(std::sync::Arc::new(long_lived));
    tale.say(&long_lived, &patch(&json!({"late": 1}))).unwrap();
    assert_eq!(&*tale.session(&second).lineage.data, r#"{"other":1,"late":1}"#);
    tale.turn(&second, Turn::Logout).unwrap();
    let over = at_once(again(&tale.realm, &tale.store, long_lived.session().unwrap(), tale.now)).unwrap();
    assert_eq!(over, Recall::None(Absence::Muted(None)));
}

#[test]
fn a_session_that_was_ended_ends_no_others_and_does_not_come_back_by_it() {
    let mut tale = Tale::begin();
    let (stolen, own) = (tale.log_in("alice"), tale.log_in("alice"));
    let slow = tale.look(&stolen);
    tale.turn(&own, Turn::LogoutAll).unwrap();
    let own = tale.log_in("alice");
    let others = Directives { logout_others: true, ..Directives::default() };
    let step_up = Directives { turn: Some(Turn::StepUp(How::default())), ..others.clone() };
    for wanted in [&others, &step_up] {
        assert_eq!(tale.say(&slow, wanted), Err(Refusal::Gone));
        assert_eq!(tale.absence(&stolen), Absence::Revoked);
        tale.session(&own);
    }
    // Ended by itself, its generation still counts; it does not.
    let other = tale.log_in("alice");
    let slow = tale.look(&other);
    tale.turn(&other, Turn::Logout).unwrap();
    assert_eq!(tale.say(&slow, &others), Err(Refusal::Gone));
    let all = Directives { turn: Some(Turn::LogoutAll), ..Directives::default() };
    assert_eq!(tale.say(&slow, &all), Err(Refusal::Gone));
    tale.session(&own);
}

#[test]
fn a_step_up_goes_on_after_the_ring_was_rotated() {
    let mut tale = Tale::begin();
    let cookie = tale.log_in("alice");
    let key = |byte| RingKey::from_secret([byte; 32]);
    tale.realm = Realm::new("shop", &KeyRing::new(vec![key(8), key(7)]), rules());
    let stepped = cookie_of(&tale.turn(&cookie, Turn::StepUp(How { acr: "mfa".into(), ..How::default() })).unwrap());
    assert_eq!(&*tale.session(&stepped).lineage.login.unwrap().acr, "mfa");
}

#[test]
fn a_cookie_of_another_key_is_left_alone_but_for_a_login() {
    let mut tale = Tale::begin();
    let unknown = Recall::None(Absence::UnknownKey);
    assert_eq!(tale.say(&unknown, &patch(&json!({"cart": 1}))), Err(Refusal::Gone));
    tale.say(&unknown, &login("alice")).unwrap();
}

#[test]
fn a_request_that_does_not_count_as_use_does_not_prolong_the_session() {
    let mut tale = Tale::begin();
    let cookie = tale.log_in("alice");
    let before = tale.look(&cookie);
    let mut session = Session::clone(before.session().unwrap());
    session.expires_in = Duration::from_secs(100);
    let before = Recall::Session(std::sync::Arc::new(session));
    tale.say(&before, &Directives { no_touch: true, ..patch(&json!({"seen": 1})) }).unwrap();
    assert_eq!(tale.session(&cookie).expires_in, Duration::from_secs(100));
}
